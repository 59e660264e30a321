//! CACHE.EMIT

use std::rc::Rc;

use smallvec::SmallVec;

use crate::args::{Arg, Args};
use crate::cache::invalidate;
use crate::cache::rules::{MAX_EVENT_LENGTH, Names, is_json};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Permission, Server};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Emit;

/// The longest data of an event, in bytes.
const MAX_DATA_LENGTH: usize = 1024 * 1024;

pub struct Request<'a> {
    pub(super) event: Arg<'a>,
    json: Arg<'a>,
}

impl<'a> Request<'a> {
    pub(super) fn parse(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (event, json) = (args.required()?, args.required()?);
        if args.left() > 0 {
            return Err(Error::WrongArity(args.command()));
        }
        if !(1..=MAX_EVENT_LENGTH).contains(&event.bytes.len()) {
            return Err(Error::EventLength);
        }
        if json.bytes.len() > MAX_DATA_LENGTH {
            return Err(Error::EventDataLength);
        }
        Ok(Request { event, json })
    }

    /// What the event removes, if the user may remove it.
    pub(super) fn names<S: Server>(&self, server: &mut S) -> Result<Names, Error> {
        let state = server.state();
        let max = usize::try_from(state.config.emit_max_keys).unwrap_or(0);
        let rule = state.cache.rules.get(self.event.bytes).map(Rc::clone);
        let names = match &rule {
            Some(rule) => rule.names(self.json.bytes, max)?,
            None if is_json(self.json.bytes) => Names::default(),
            None => return Err(Error::EventData),
        };
        if !names.keys.iter().chain(&names.tags).all(|name| server.permits(name, Permission::Delete)) {
            return Err(Error::NoPermission);
        }
        Ok(names)
    }

    /// The event is emitted.
    pub(super) fn count<S: Server>(&self, server: &mut S) {
        let cache = &mut server.state().cache;
        let without_rule = cache.rules.get(self.event.bytes).is_none();
        cache.counters.events = cache.counters.events.saturating_add(1);
        cache.counters.events_without_rule = cache.counters.events_without_rule.saturating_add(u64::from(without_rule));
    }
}

impl Command for Emit {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.emit",
        family: Family::Cache,
        summary: "Removes the keys, and the keys of the tags, that the rule of an event makes from its data.",
        complexity: "O(N + M) where N is the length of the data and M the number of keys, as for CACHE.INVALIDATETAG.",
        since: "0.1.0",
        arity: 3,
        flags: &[Flag::Write],
        keys: Keys::None,
        access: Access::None,
        tips: &["request_policy:all_shards", "response_policy:agg_sum"],
        args: &[ArgSpec::string("event"), ArgSpec::string("json")],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        Request::parse(args)
    }

    /// An event without a rule removes nothing.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let names = request.names(server)?;
        request.count(server);
        let keys: SmallVec<[&[u8]; 16]> = names.keys.iter().map(|key| &**key).collect();
        let tags: SmallVec<[Arg<'_>; 8]> = names.tags.iter().map(|tag| Arg::named(tag)).collect();
        Ok(Reply::count(invalidate::event(server, request.event.bytes, &keys, &tags)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::fetch::Fetch;
    use crate::cache::commands::fill_nil::FillNil;
    use crate::cache::commands::rule;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    fn server(rule: &str) -> FakeServer {
        let mut server = FakeServer::new();
        server.call::<rule::Set>(&format!("CACHE.RULE SET {rule}")).unwrap();
        for line in ["user:1 v TAGS 2 a shop:5", "user:2 v TAGS 1 shop:5", "p:1 v", "p:2 v", "other v TAGS 1 a"] {
            server.call::<Set>(&format!("CACHE.SET {line}")).unwrap();
        }
        server.take_replicated();
        server
    }

    fn emit(server: &mut FakeServer, event: &str, json: &str) -> Result<i64, Error> {
        match server.call_argv::<Emit>(["CACHE.EMIT", event, json].map(|word| word.as_bytes().to_vec()).to_vec())? {
            Reply::Int(n) => Ok(n),
            other => panic!("{other:?}"),
        }
    }

    const RULE: &str = "paid KEYS 2 user:{user} p:{items[].id} TAGS 1 shop:{shop}";

    #[test]
    fn keys_and_tags_go_in_one_step_and_each_key_counts_once() {
        let mut server = server(RULE);
        let now = server.now.to_ms().0;
        let json = r#"{"user": 1, "items": [{"id": 1}, {"id": 2}, {"id": 9}], "shop": "5"}"#;
        assert_eq!(emit(&mut server, "paid", json), Ok(4));
        let sent = server.take_replicated();
        let retire = format!("KEYWARD.APPLY RETIRE {now} shop:5");
        assert_eq!(sent, ["UNLINK user:1 p:1 p:2", &*retire, "UNLINK user:2"]);
        assert!(server.holds("other") && server.keys.len() == 1);
        assert_eq!(emit(&mut server, "paid", json), Ok(0));
        assert!(server.take_replicated().is_empty());
        let counters = server.state.cache.counters;
        assert_eq!((counters.invalidated_keys, counters.events, counters.events_without_rule), (4, 2, 0));
    }

    #[test]
    fn a_fault_leaves_everything_as_it_was() {
        let mut server = server(RULE);
        server.denied.push(b"shop:denied".to_vec());
        server.state.config.emit_max_keys = 4;
        let needs = |path: &str| Error::NeedsField(b"paid"[..].into(), path.into());
        for (json, error) in [
            (r#"{"user":1,"items":[],"shop":null}"#, needs("shop")),
            (r#"{"user":1.5,"items":[],"shop":5}"#, needs("user")),
            (r#"{"user":1,"items":[{"id":1},{"no":1}],"shop":5}"#, needs("items[].id")),
            (r#"{"user":1,"items":[{"id":1},{"id":2},{"id":3}],"shop":5}"#, Error::EventTooLarge(4)),
            (r#"{"user":1,"items":[],"shop":"denied"}"#, Error::NoPermission),
            (r#"{"user":1,"items":[],"shop":5"#, Error::EventData),
        ] {
            assert_eq!(emit(&mut server, "paid", json), Err(error), "{json}");
        }
        assert_eq!(emit(&mut server, "", "{}"), Err(Error::EventLength));
        assert_eq!(emit(&mut server, "paid", &" ".repeat(MAX_DATA_LENGTH + 1)), Err(Error::EventDataLength));
        assert!(server.keys.len() == 5 && server.take_replicated().is_empty());
        assert_eq!(server.state.cache.counters.events, 0);
    }

    #[test]
    fn the_right_to_delete_each_key_is_needed() {
        let mut server = server("e KEYS 2 p:1 {k}");
        server.denied.push(b"p:2".to_vec());
        assert_eq!(emit(&mut server, "e", r#"{"k":"p:2"}"#), Err(Error::NoPermission));
        assert_eq!(server.keys.len(), 5);
        assert_eq!(emit(&mut server, "e", r#"{"k":"p:3"}"#), Ok(1));
    }

    #[test]
    fn an_event_without_a_rule_removes_nothing_but_must_be_json() {
        let mut server = server(RULE);
        assert_eq!(emit(&mut server, "unknown", r#"{"user":1}"#), Ok(0));
        assert_eq!(emit(&mut server, "unknown", "{"), Err(Error::EventData));
        let counters = server.state.cache.counters;
        assert_eq!((counters.events, counters.events_without_rule), (1, 1));
        assert!(server.keys.len() == 5 && server.take_replicated().is_empty());
    }

    #[test]
    fn leases_and_negative_answers_of_keys_that_are_not_there_end() {
        let mut server = server("e KEYS 2 a b TAGS 1 t");
        let token = |reply: Reply<'_>| match reply {
            Reply::Array(parts) => match &parts[..] {
                [_, _, Reply::OwnedBytes(token)] => String::from_utf8(token.clone()).unwrap(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        let (a, b, c) =
            ["a", "b", "c"].map(|key| token(server.call::<Fetch>(&format!("CACHE.FETCH {key}")).unwrap())).into();
        assert_eq!(server.call::<FillNil>(&format!("CACHE.FILLNIL b {b} EX 9")), Ok(Reply::Int(1)));
        server.take_replicated();
        assert_eq!(emit(&mut server, "e", "{}"), Ok(0));
        assert_eq!(server.take_replicated(), ["KEYWARD.APPLY NONEGATIVE b"]);
        assert_eq!(
            server.call::<FillNil>(&format!("CACHE.FILLNIL a {a} EX 9")),
            Ok(Reply::Int(0)),
            "the lease is over"
        );
        assert_eq!(
            server.call::<FillNil>(&format!("CACHE.FILLNIL c {c} EX 9 TAGS 1 t")),
            Ok(Reply::Int(0)),
            "the fence"
        );
    }
}
