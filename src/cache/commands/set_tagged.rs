//! CACHE.SETTAGGED

use super::set::Request;
use crate::args::Args;
use crate::cache::write_options::{
    CONDITION_SPEC, EXPIRY_SPEC, GRACE_SPEC, JITTER_SPEC, POLICY_SPEC, TAGS_SPEC, VERSION_SPEC,
};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct SetTagged;

impl Command for SetTagged {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.settagged",
        family: Family::Cache,
        summary: "Stores a value that expires and carries tags.",
        complexity: "O(N) where N is the number of tags.",
        since: "0.1.0",
        arity: -8,
        flags: &[Flag::Write, Flag::DenyOom],
        keys: Keys::First,
        access: Access::Overwrite,
        tips: &[],
        args: &[
            ArgSpec::key(),
            ArgSpec::string("value"),
            EXPIRY_SPEC,
            TAGS_SPEC,
            JITTER_SPEC.optional(),
            GRACE_SPEC,
            CONDITION_SPEC,
            VERSION_SPEC,
            POLICY_SPEC,
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let request = Request::parse(args)?;
        let complete = request.options.expiry.is_some() && !request.options.tags.is_empty();
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
    fn tags_and_an_expiry_are_required_in_any_order() {
        let mut server = FakeServer::new();
        assert_eq!(server.call::<SetTagged>("CACHE.SETTAGGED k v TAGS 2 a b EX 5"), Ok(Reply::Ok));
        assert_eq!(server.state.cache.tags(0, b"k").count(), 2);
        for line in ["k v EX 5", "k v TAGS 1 a", "k v EX 5 TAGS 1 a FOO"] {
            assert_eq!(server.call::<SetTagged>(&format!("CACHE.SETTAGGED {line}")), Err(Error::Syntax), "{line}");
        }
    }

    #[test]
    fn the_verbatim_form_is_sent_only_if_it_is_absolute() {
        let mut server = FakeServer::new();
        let at = server.now.to_ms().0 + 5000;
        let absolute = format!("CACHE.SETTAGGED k v PXAT {at} TAGS 1 a");
        server.call::<SetTagged>(&absolute).unwrap();
        server.call::<SetTagged>("CACHE.SETTAGGED k v EX 5 TAGS 1 a").unwrap();
        assert_eq!(server.take_replicated(), [absolute, format!("CACHE.SET k v PXAT {at} TAGS 1 a")]);
    }

    #[test]
    fn errors_name_the_command() {
        let mut server = FakeServer::new();
        let reply = server.call::<SetTagged>("CACHE.SETTAGGED k v EX 0 TAGS 1 a");
        assert_eq!(reply, Err(Error::InvalidExpire("cache.settagged")));
    }
}
