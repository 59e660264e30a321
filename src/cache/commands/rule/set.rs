//! CACHE.RULE SET

use super::EVENT;
use crate::args::{Arg, Args, once};
use crate::cache::rules::{MAX_TEMPLATES, Rule};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Set;

const KEYS_SPEC: ArgSpec =
    ArgSpec::block("keys", &[ArgSpec::integer("numkeys"), ArgSpec::string("template").multiple()]).token("KEYS");
const TAGS_SPEC: ArgSpec =
    ArgSpec::block("tags", &[ArgSpec::integer("numtags"), ArgSpec::string("template").multiple()]).token("TAGS");

/// A count and as many templates.
fn counted<'a>(args: &mut Args<'a>) -> Result<Vec<&'a [u8]>, Error> {
    let count = args.value()?.int()?;
    let count = usize::try_from(count).ok().filter(|count| (1..=MAX_TEMPLATES).contains(count));
    Ok(args.list(count.ok_or(Error::TemplateCount)?)?.map(|template: Arg<'_>| template.bytes).collect())
}

impl Command for Set {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.rule|set",
        family: Family::Cache,
        summary: "Sets which keys and tags an event invalidates, in place of what its rule said before.",
        complexity: "O(N) where N is the number of templates.",
        since: "0.1.0",
        arity: -3,
        flags: &[Flag::Write, Flag::Admin],
        keys: Keys::None,
        access: Access::None,
        tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
        args: &[EVENT, KEYS_SPEC.optional(), TAGS_SPEC.optional()],
    };
    type Request<'a> = Rule;

    fn parse(args: &mut Args<'_>) -> Result<Rule, Error> {
        args.skip_subcommand();
        let event = args.required()?;
        let (mut keys, mut tags) = (None, None);
        while let Some(word) = args.take() {
            if word.is("KEYS") {
                once(&mut keys, counted(args)?)?;
            } else if word.is("TAGS") {
                once(&mut tags, counted(args)?)?;
            } else {
                return Err(Error::Syntax);
            }
        }
        Rule::new(event.bytes, keys.unwrap_or_default(), tags.unwrap_or_default())
    }

    /// A decision of the primary is repeated, whatever the cap is here. A rule that is there already changes nothing.
    fn run<'s, S: Server>(rule: Rule, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let replayed = server.replayed();
        let state = server.state();
        let (rules, counters) = (&mut state.cache.rules, &mut state.cache.counters);
        match rules.get(&rule.event) {
            Some(known) if **known == rule => return Ok(Reply::Ok),
            Some(_) => {}
            None if !replayed && usize::try_from(state.config.rules_max).is_ok_and(|max| rules.len() >= max) => {
                counters.rules_full = counters.rules_full.saturating_add(1);
                return Err(Error::TooManyRules);
            }
            None => {}
        }
        rules.put(rule);
        server.replicate_verbatim();
        Ok(Reply::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Delete, Get, List};
    use super::*;
    use crate::fake_server::FakeServer;

    fn set(server: &mut FakeServer, line: &str) -> Result<(), Error> {
        server.call::<Set>(&format!("CACHE.RULE SET {line}")).map(|_| ())
    }

    fn bytes(text: &str) -> Reply<'_> {
        Reply::OwnedBytes(text.as_bytes().to_vec())
    }

    #[test]
    fn a_rule_is_set_told_listed_and_removed() {
        let mut server = FakeServer::new();
        set(&mut server, "paid tags 1 shop:{shop} keys 2 user:{user.id} all").unwrap();
        set(&mut server, "moved KEYS 1 k").unwrap();
        let keys = Reply::Array(vec![bytes("user:{user.id}"), bytes("all")]);
        let tags = Reply::Array(vec![bytes("shop:{shop}")]);
        let told = Reply::Map(vec![("keys", keys), ("tags", tags)]);
        assert_eq!(server.call::<Get>("CACHE.RULE GET paid"), Ok(told));
        let all = Reply::Array(vec![Reply::Bytes(b"moved"), Reply::Bytes(b"paid")]);
        assert_eq!(server.call::<List>("CACHE.RULE LIST"), Ok(all));
        server.take_replicated();
        assert_eq!(server.call::<Delete>("CACHE.RULE DEL paid"), Ok(Reply::Int(1)));
        assert_eq!(server.take_replicated(), ["CACHE.RULE DEL paid"]);
        assert_eq!(server.call::<Delete>("CACHE.RULE DEL paid"), Ok(Reply::Int(0)));
        assert_eq!(server.call::<Get>("CACHE.RULE GET paid"), Ok(Reply::Nil));
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn a_rule_replaces_the_whole_of_the_one_before_and_the_same_one_changes_nothing() {
        let mut server = FakeServer::new();
        set(&mut server, "e KEYS 1 k TAGS 1 t").unwrap();
        set(&mut server, "e KEYS 1 l").unwrap();
        let told = Reply::Map(vec![("keys", Reply::Array(vec![bytes("l")])), ("tags", Reply::Array(vec![]))]);
        assert_eq!(server.call::<Get>("CACHE.RULE GET e"), Ok(told));
        server.take_replicated();
        set(&mut server, "e keys 1 l").unwrap();
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        let mut server = FakeServer::new();
        for (line, error) in [
            ("e", Error::TemplateCount),
            ("e KEYS", Error::Syntax),
            ("e KEYS 0", Error::TemplateCount),
            ("e KEYS -1 k", Error::TemplateCount),
            ("e KEYS 65 k", Error::TemplateCount),
            ("e KEYS x k", Error::NotAnInteger),
            ("e KEYS 2 k", Error::Syntax),
            ("e KEYS 1 k l", Error::Syntax),
            ("e KEYS 1 k KEYS 1 l", Error::Syntax),
            ("e TAGS 1 t TAGS 1 u", Error::Syntax),
            ("e KEYS 1 {", Error::Template),
            ("e KEYS 1 k TAGS 1 {}", Error::Template),
        ] {
            assert_eq!(set(&mut server, line), Err(error), "{line}");
        }
        assert_eq!(set(&mut server, &format!("{} KEYS 1 k", "e".repeat(513))), Err(Error::EventLength));
        assert_eq!(server.call::<List>("CACHE.RULE LIST x"), Err(Error::WrongArity("cache.rule|list")));
        assert_eq!(server.call::<Get>("CACHE.RULE GET x y"), Err(Error::WrongArity("cache.rule|get")));
        assert!(server.state.cache.rules.is_empty() && server.take_replicated().is_empty());
    }

    #[test]
    fn the_cap_is_for_new_events_and_for_the_primary() {
        let mut server = FakeServer::new();
        server.state.config.rules_max = 1;
        set(&mut server, "a KEYS 1 k").unwrap();
        set(&mut server, "a KEYS 1 l").unwrap();
        assert_eq!(set(&mut server, "b KEYS 1 k"), Err(Error::TooManyRules));
        assert_eq!(server.state.cache.counters.rules_full, 1);
        server.replayed = true;
        set(&mut server, "b KEYS 1 k").unwrap();
        assert_eq!(server.state.cache.rules.len(), 2);
    }

    #[test]
    fn rules_outlive_what_is_flushed_but_not_a_load() {
        let mut server = FakeServer::new();
        set(&mut server, "a KEYS 1 k").unwrap();
        server.state.flushed(None);
        assert_eq!(server.state.cache.rules.len(), 1);
        server.state.loading();
        assert!(server.state.cache.rules.is_empty());
    }
}
