//! CACHE.MSET

use smallvec::SmallVec;

use crate::args::{Arg, Args};
use crate::cache::write_options::{EXPIRY_SPEC, GRACE_SPEC, JITTER_SPEC, POLICY_SPEC, TAGS_SPEC, WriteOptions};
use crate::cache::{governed, waiters, write};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct MSet;

/// More than the server takes as arguments of one command.
const MAX_KEYS: i64 = 1_000_000;

#[derive(Debug)]
pub struct Request<'a> {
    pairs: SmallVec<[Arg<'a>; 16]>,
    options: WriteOptions<'a>,
}

impl Command for MSet {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.mset",
        family: Family::Cache,
        summary: "Stores several values with the same options, all or nothing.",
        complexity: "O(N*M) where N is the number of keys and M the number of tags.",
        since: "0.1.0",
        arity: -4,
        flags: &[Flag::Write, Flag::DenyOom],
        keys: Keys::Counted { step: 2 },
        access: Access::Overwrite,
        tips: &[],
        args: &[
            ArgSpec::integer("numkeys"),
            ArgSpec::block("data", &[ArgSpec::key(), ArgSpec::string("value")]).multiple(),
            EXPIRY_SPEC.optional(),
            JITTER_SPEC.optional(),
            GRACE_SPEC,
            TAGS_SPEC.optional(),
            POLICY_SPEC,
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let count = args.required()?.int()?;
        let keys = usize::try_from(count).ok().filter(|_| (1..=MAX_KEYS).contains(&count));
        let words = keys.and_then(|keys| keys.checked_mul(2)).ok_or(Error::CountRange("numkeys", 1, MAX_KEYS))?;
        let pairs = args.list(words)?.collect();
        let options = WriteOptions::parse(args)?;
        if options.condition.is_some() || options.version.is_some() {
            return Err(Error::Syntax);
        }
        Ok(Request { pairs, options })
    }

    /// A key that is named twice ends with the last value, as in MSET. First each key is judged by its policy, so that an error
    /// stores nothing.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { pairs, options } = request;
        let mut expires: SmallVec<[_; 8]> = SmallVec::new();
        for key in pairs.iter().step_by(2) {
            expires.push(governed::expires(server, *key, &options, Self::SPEC.name)?.0);
        }
        for (pair, expires) in pairs.chunks_exact(2).zip(expires) {
            let &[key, value] = pair else { continue };
            let life = write::store(server, key, value, expires, &options, 0)?;
            waiters::value_came(server, key, value);
            write::replicate(server, key, value, life, &options);
        }
        Ok(Reply::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;

    #[test]
    fn every_key_gets_the_options_and_a_draw_of_its_own() {
        let mut server = FakeServer::new();
        server.draws.extend([7, 3]);
        let now = server.now.to_ms().0;
        assert_eq!(server.call::<MSet>("CACHE.MSET 2 a 1 b 2 PX 100 JITTER 10 TAGS 1 t"), Ok(Reply::Ok));
        let sent =
            [("a 1", now + 107), ("b 2", now + 103)].map(|(pair, at)| format!("CACHE.SET {pair} PXAT {at} TAGS 1 t"));
        assert_eq!(server.take_replicated(), sent);
        assert_eq!(server.state.cache.tag_info(0, b"t").keys, 2);
    }

    #[test]
    fn the_last_value_of_a_key_wins() {
        let mut server = FakeServer::new();
        server.call::<MSet>("CACHE.MSET 2 a 1 a 2").unwrap();
        assert_eq!(server.take_replicated(), ["CACHE.SET a 1", "CACHE.SET a 2"]);
    }

    #[test]
    fn an_error_stores_nothing() {
        let mut server = FakeServer::new();
        let range = Error::CountRange("numkeys", 1, MAX_KEYS);
        for (line, error) in [
            ("0 a 1", range.clone()),
            ("-1 a 1", range.clone()),
            ("9223372036854775807 a 1", range),
            ("x a 1", Error::NotAnInteger),
            ("2 a 1 b", Error::Syntax),
            ("1 a 1 b 2", Error::Syntax),
            ("1 a 1 NX", Error::Syntax),
            ("1 a 1 VERSION 1", Error::Syntax),
            ("2 a 1 b 2 PX 9223372036854775807", Error::InvalidExpire("cache.mset")),
            ("2 a 1 b 2 TAGS 0", Error::TagCount),
        ] {
            assert_eq!(server.call::<MSet>(&format!("CACHE.MSET {line}")), Err(error), "{line}");
        }
        assert!(server.keys.is_empty() && server.take_replicated().is_empty());
    }
}
