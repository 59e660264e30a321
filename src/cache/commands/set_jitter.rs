//! CACHE.SETJITTER

use super::set::Request;
use crate::args::Args;
use crate::cache::write_options::{
    CONDITION_SPEC, Expiry, GRACE_SPEC, JITTER_SPEC, POLICY_SPEC, TAGS_SPEC, VERSION_SPEC,
};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct SetJitter;

impl Command for SetJitter {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.setjitter",
        family: Family::Cache,
        summary: "Stores a value whose expiry is lengthened by a random amount, so that entries do not expire together.",
        complexity: "O(N) where N is the number of tags.",
        since: "0.1.0",
        arity: -7,
        flags: &[Flag::Write, Flag::DenyOom],
        keys: Keys::First,
        access: Access::Overwrite,
        tips: &[],
        args: &[
            ArgSpec::key(),
            ArgSpec::string("value"),
            ArgSpec::one_of(
                "expiration",
                &[ArgSpec::integer("seconds").token("EX"), ArgSpec::integer("milliseconds").token("PX")],
            ),
            JITTER_SPEC,
            GRACE_SPEC,
            TAGS_SPEC.optional(),
            CONDITION_SPEC,
            VERSION_SPEC,
            POLICY_SPEC,
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let request = Request::parse(args)?;
        let complete = matches!(request.options.expiry, Some(Expiry::In(_))) && request.options.jitter.is_some();
        if complete { Ok(request) } else { Err(Error::Syntax) }
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        request.run(server, Self::SPEC.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;

    #[test]
    fn the_drawn_expiry_is_replicated() {
        let mut server = FakeServer::new();
        server.draws.extend([0, 99_999]);
        let now = server.now.to_ms().0;
        for _ in 0..2 {
            assert_eq!(server.call::<SetJitter>("CACHE.SETJITTER k v EX 100 JITTER 10%"), Ok(Reply::Ok));
        }
        let sent = [now + 100_000, now + 110_000].map(|at| format!("CACHE.SET k v PXAT {at}"));
        assert_eq!(server.take_replicated(), sent, "from the TTL to the TTL and a tenth, ends included");
    }

    #[test]
    fn a_relative_expiry_and_a_jitter_are_required() {
        let mut server = FakeServer::new();
        for line in ["k v EX 5", "k v JITTER 5", "k v PXAT 9999999999999 JITTER 5", "k v EXAT 9999999999 JITTER 5"] {
            assert_eq!(server.call::<SetJitter>(&format!("CACHE.SETJITTER {line}")), Err(Error::Syntax), "{line}");
        }
        assert!(server.keys.is_empty());
    }
}
