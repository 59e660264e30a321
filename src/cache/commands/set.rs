//! CACHE.SET

use crate::args::{Arg, Args};
use crate::cache::write;
use crate::cache::write_options::{
    CONDITION_SPEC, EXPIRY_SPEC, GRACE_SPEC, JITTER_SPEC, POLICY_SPEC, TAGS_SPEC, VERSION_SPEC, WriteOptions,
};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Set;

/// SETTAGGED and SETJITTER are the same with more options required.
#[derive(Debug)]
pub struct Request<'a> {
    pub key: Arg<'a>,
    pub value: Arg<'a>,
    pub options: WriteOptions<'a>,
}

impl<'a> Request<'a> {
    pub fn parse(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        Ok(Request { key: args.required()?, value: args.required()?, options: WriteOptions::parse(args)? })
    }

    pub fn run<S: Server>(&self, server: &mut S, command: &'static str) -> Result<Reply<'static>, Error> {
        let stored = write::set(server, self.key, self.value, &self.options, command)?;
        Ok(if stored { Reply::Ok } else { Reply::Nil })
    }
}

impl Command for Set {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.set",
        family: Family::Cache,
        summary: "Stores a value with an optional expiry, jitter, grace, tags and version.",
        complexity: "O(N) where N is the number of tags.",
        since: "0.1.0",
        arity: -3,
        flags: &[Flag::Write, Flag::DenyOom],
        keys: Keys::First,
        access: Access::Overwrite,
        tips: &[],
        args: &[
            ArgSpec::key(),
            ArgSpec::string("value"),
            EXPIRY_SPEC.optional(),
            JITTER_SPEC.optional(),
            GRACE_SPEC,
            TAGS_SPEC.optional(),
            CONDITION_SPEC,
            VERSION_SPEC,
            POLICY_SPEC,
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        Request::parse(args)
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        request.run(server, Self::SPEC.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMs;
    use crate::fake_server::{FakeServer, Value};

    fn value(server: &FakeServer, key: &str) -> Option<String> {
        match &server.keys.get(&(server.db, key.as_bytes().to_vec()))?.value {
            Value::String(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        }
    }

    fn expiry(server: &FakeServer, key: &str) -> Option<UnixMs> {
        server.keys[&(server.db, key.as_bytes().to_vec())].expiry
    }

    fn tags(server: &FakeServer, key: &str) -> Vec<String> {
        server.state.cache.tags(server.db, key.as_bytes()).map(|t| String::from_utf8_lossy(t).into_owned()).collect()
    }

    #[test]
    fn stores_and_replicates_the_moment_of_expiry() {
        let mut server = FakeServer::new();
        let now = server.now.to_ms();
        assert_eq!(server.call::<Set>("CACHE.SET k v EX 10 JITTER 5 TAGS 2 a b VERSION 7"), Ok(Reply::Ok));
        server.draws.push_back(4321);
        assert_eq!(server.call::<Set>("CACHE.SET k w PX 10000 JITTER 50% TAGS 3 b a b"), Ok(Reply::Ok));
        assert_eq!((value(&server, "k").as_deref(), expiry(&server, "k")), (Some("w"), Some(now.plus(14_321))));
        let (first, second) = (now.0 + 10_000, now.0 + 14_321);
        assert_eq!(
            server.take_replicated(),
            [
                format!("CACHE.SET k v PXAT {first} TAGS 2 a b VERSION 7"),
                format!("CACHE.SET k w PXAT {second} TAGS 2 b a"),
            ]
        );
        assert_eq!(tags(&server, "k"), ["b", "a"]);
    }

    #[test]
    fn what_needs_no_clock_goes_as_it_came() {
        let mut server = FakeServer::new();
        for line in ["CACHE.SET k v", "CACHE.SET k v TAGS 1 a VERSION 3", "CACHE.SET k v exat 9999999999 TAGS 1 a"] {
            assert_eq!(server.call::<Set>(line), Ok(Reply::Ok));
            assert_eq!(server.take_replicated(), [line]);
        }
        server.draws.push_back(9);
        server.call::<Set>("CACHE.SET k v PXAT 9999999999999 JITTER 9").unwrap();
        assert_eq!(
            server.take_replicated(),
            ["CACHE.SET k v PXAT 10000000000008"],
            "what was drawn is not drawn again"
        );
        server.call::<Set>("CACHE.SET other v NX").unwrap();
        assert_eq!(server.take_replicated(), ["CACHE.SET other v"], "a condition is not decided again");
    }

    #[test]
    fn without_tags_the_key_ends_untagged() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v TAGS 1 a").unwrap();
        server.call::<Set>("CACHE.SET k v").unwrap();
        assert!(tags(&server, "k").is_empty());
        assert_eq!(server.state.cache.tagged_keys(), 0);
    }

    #[test]
    fn conditions_decide_and_a_no_changes_nothing() {
        let mut server = FakeServer::new();
        assert_eq!(server.call::<Set>("CACHE.SET k v XX"), Ok(Reply::Nil));
        assert_eq!(server.call::<Set>("CACHE.SET k v NX TAGS 1 a"), Ok(Reply::Ok));
        server.take_replicated();
        assert_eq!(server.call::<Set>("CACHE.SET k w NX TAGS 1 b"), Ok(Reply::Nil));
        assert_eq!((value(&server, "k").as_deref(), tags(&server, "k")), (Some("v"), vec!["a".to_owned()]));
        assert!(server.take_replicated().is_empty());
        assert_eq!(server.call::<Set>("CACHE.SET k w XX"), Ok(Reply::Ok));
    }

    #[test]
    fn an_invalidated_key_counts_as_missing() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v TAGS 1 a").unwrap();
        let now = server.now.to_ms();
        server.state.cache.retire(0, b"a", now);
        assert_eq!(server.call::<Set>("CACHE.SET k w XX"), Ok(Reply::Nil));
        assert_eq!(server.call::<Set>("CACHE.SET k w NX TAGS 1 a"), Ok(Reply::Ok));
        assert!(!server.state.cache.is_retired(0, b"k"), "the new value is not the one that was invalidated");
        assert_eq!(tags(&server, "k"), ["a"]);
    }

    #[test]
    fn an_expired_value_takes_its_tags_with_it_and_not_those_of_the_new_one() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v PX 10 TAGS 1 a").unwrap();
        server.advance_ms(20);
        server.call::<Set>("CACHE.SET k w TAGS 1 b").unwrap();
        assert_eq!(tags(&server, "k"), ["b"]);
    }

    #[test]
    fn only_newer_versions_are_stored_and_the_floor_outlives_the_key() {
        let mut server = FakeServer::new();
        assert_eq!(server.call::<Set>("CACHE.SET k v0 VERSION 0"), Ok(Reply::Ok), "0 is greater than nothing seen");
        assert_eq!(server.call::<Set>("CACHE.SET k v5 VERSION 5"), Ok(Reply::Ok));
        server.take_replicated();
        for line in ["CACHE.SET k old VERSION 5", "CACHE.SET k old VERSION 4 PX 5", "CACHE.SET k old XX VERSION 0"] {
            assert_eq!(server.call::<Set>(line), Ok(Reply::Nil), "{line}");
        }
        assert_eq!((value(&server, "k").as_deref(), server.take_replicated().len()), (Some("v5"), 0));
        server.unlink(&[b"k"]);
        server.advance_ms(59_999);
        assert_eq!(server.call::<Set>("CACHE.SET k old VERSION 5"), Ok(Reply::Nil));
        server.advance_ms(1);
        assert_eq!(server.call::<Set>("CACHE.SET k old VERSION 5"), Ok(Reply::Ok));
    }

    #[test]
    fn what_was_decided_elsewhere_is_applied_whatever_is_here() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v VERSION 9").unwrap();
        server.replayed = true;
        let past = server.now.to_ms().0 - 5;
        assert_eq!(server.call::<Set>(&format!("CACHE.SET k w PXAT {past} TAGS 1 a NX VERSION 3")), Ok(Reply::Ok));
        assert_eq!((value(&server, "k").as_deref(), expiry(&server, "k")), (Some("w"), Some(UnixMs(past))));
        assert_eq!(tags(&server, "k"), ["a"]);
    }

    #[test]
    fn an_expiry_beyond_the_range_changes_nothing() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v TAGS 1 a").unwrap();
        server.take_replicated();
        let error = Err(Error::InvalidExpire("cache.set"));
        assert_eq!(server.call::<Set>("CACHE.SET k w PX 9223372036854775807"), error);
        assert_eq!(server.call::<Set>("CACHE.SET k w EX 0"), error);
        assert_eq!((value(&server, "k").as_deref(), tags(&server, "k").len()), (Some("v"), 1));
        assert!(server.take_replicated().is_empty());
        assert_eq!(server.call::<Set>("CACHE.SET k"), Err(Error::WrongArity("cache.set")));
    }

    #[test]
    fn the_syntax_line_says_it_all() {
        assert_eq!(
            Set::SPEC.syntax(),
            "CACHE.SET key value [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds] \
             [JITTER amount | percent%] [GRACE grace] [TAGS numtags tag [tag ...]] [NX | XX] [VERSION version] [POLICY policy]"
        );
    }
}
