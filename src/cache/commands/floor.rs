//! CACHE.FLOOR

use crate::args::{Arg, Args};
use crate::cache::single_flight;
use crate::cache::write_options::parse_version;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Server, Word};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Floor;

#[derive(Debug)]
pub struct Request<'a> {
    key: Arg<'a>,
    version_word: Arg<'a>,
    version: u64,
}

impl Command for Floor {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.floor",
        family: Family::Cache,
        summary: "Removes a key and refuses versions of it up to the one given.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 3,
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::First,
        access: Access::Delete,
        tips: &[],
        args: &[ArgSpec::key(), ArgSpec::integer("version")],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, version_word) = (args.required()?, args.required()?);
        if args.left() > 0 {
            return Err(Error::WrongArity(args.command()));
        }
        Ok(Request { key, version_word, version: parse_version(version_word)? })
    }

    /// Where the floor is that high already, the key may hold this version or a newer one, and stays.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, version_word, version } = request;
        let (db, now) = (server.db(), server.now().to_ms());
        let state = server.state();
        let until = now.plus(state.config.version_floor_ms);
        if !state.cache.set_floor(&state.config, (db, key.bytes), version, until, Some(now))? {
            return Ok(Reply::Int(0));
        }
        single_flight::revoke(server, &[key.bytes]);
        let removed = server.invalidate(&[key.bytes]);
        let counters = &mut server.state().cache.counters;
        counters.invalidations = counters.invalidations.saturating_add(removed as u64);
        counters.invalidated_keys = counters.invalidated_keys.saturating_add(removed as u64);
        let words = [Word::Text("FLOOR"), Word::Arg(key), Word::Arg(version_word), Word::Int(until.0)];
        server.replicate("KEYWARD.APPLY", &words);
        Ok(Reply::Int(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    #[test]
    fn removes_the_key_and_refuses_what_is_not_newer_for_a_while() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v TAGS 1 t VERSION 3").unwrap();
        server.take_replicated();
        let until = server.now.to_ms().0 + 60_000;
        assert_eq!(server.call::<Floor>("CACHE.FLOOR k 5"), Ok(Reply::Int(1)));
        assert_eq!(server.take_replicated(), ["UNLINK k".to_owned(), format!("KEYWARD.APPLY FLOOR k 5 {until}")]);
        assert!(server.keys.is_empty() && server.state.cache.tagged_keys() == 0);
        assert_eq!(server.call::<Set>("CACHE.SET k v VERSION 5"), Ok(Reply::Nil));
        server.advance_ms(59_999);
        assert_eq!(server.call::<Set>("CACHE.SET k v VERSION 5"), Ok(Reply::Nil));
        server.advance_ms(1);
        assert_eq!(server.call::<Set>("CACHE.SET k v VERSION 5"), Ok(Reply::Ok));
    }

    #[test]
    fn a_floor_that_is_there_already_changes_nothing() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v VERSION 5").unwrap();
        server.take_replicated();
        for line in ["CACHE.FLOOR k 5", "CACHE.FLOOR k 0"] {
            assert_eq!(server.call::<Floor>(line), Ok(Reply::Int(0)), "{line}");
        }
        assert!(server.keys.len() == 1 && server.take_replicated().is_empty());
        assert_eq!(server.call::<Floor>("CACHE.FLOOR k -1"), Err(Error::VersionRange));
        assert_eq!(server.call::<Floor>("CACHE.FLOOR k x"), Err(Error::NotAnInteger));
        assert_eq!(server.call::<Floor>("CACHE.FLOOR k 6 7"), Err(Error::WrongArity("cache.floor")));
    }

    #[test]
    fn a_key_that_never_was_gets_a_floor_too() {
        let mut server = FakeServer::new();
        assert_eq!(server.call::<Floor>("CACHE.FLOOR k 9223372036854775807"), Ok(Reply::Int(1)));
        assert_eq!(server.take_replicated().len(), 1, "there was nothing to unlink");
        assert_eq!(server.call::<Set>("CACHE.SET k v VERSION 9223372036854775807"), Ok(Reply::Nil));
        assert_eq!(server.call::<Set>("CACHE.SET k v"), Ok(Reply::Ok), "a write without a version is not judged");
    }
}
