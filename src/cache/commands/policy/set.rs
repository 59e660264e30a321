//! CACHE.POLICY SET

use super::NAME;
use crate::args::{Arg, Args, once};
use crate::cache::commands::fetch::{BETA_SPEC, parse_beta};
use crate::cache::commands::loads::checked_loader;
use crate::cache::key_pattern::KeyPattern;
use crate::cache::policies::{Enforce, MAX_NAME_LENGTH, Policy};
use crate::cache::write_options::{
    Age, Expiry, GRACE_SPEC, JITTER_SPEC, Terms, WriteOptions, in_range, in_seconds, parse_expiry, parse_percent,
};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Set;

/// The words after the name, as they came.
#[derive(Default)]
struct Words<'a> {
    prefix: Option<Arg<'a>>,
    expiry: Option<(Arg<'a>, Arg<'a>)>,
    jitter: Option<Arg<'a>>,
    grace: Option<Arg<'a>>,
    sliding: Option<()>,
    negative: Option<Arg<'a>>,
    beta: Option<Arg<'a>>,
    ahead: Option<Arg<'a>>,
    loader: Option<Arg<'a>>,
    pattern: Option<Arg<'a>>,
    enforce: Option<Enforce>,
}

impl<'a> Words<'a> {
    fn parse(args: &mut Args<'a>) -> Result<Words<'a>, Error> {
        let mut words = Words::default();
        while let Some(word) = args.take() {
            if word.is("PREFIX") {
                once(&mut words.prefix, args.value()?)?;
            } else if word.is("EX") || word.is("PX") {
                once(&mut words.expiry, (word, args.value()?))?;
            } else if word.is("JITTER") {
                once(&mut words.jitter, args.value()?)?;
            } else if word.is("GRACE") {
                once(&mut words.grace, args.value()?)?;
            } else if word.is("SLIDING") {
                once(&mut words.sliding, ())?;
            } else if word.is("NEGATIVE") {
                once(&mut words.negative, args.value()?)?;
            } else if word.is("BETA") {
                once(&mut words.beta, args.value()?)?;
            } else if word.is("AHEAD") {
                once(&mut words.ahead, args.value()?)?;
            } else if word.is("LOADER") {
                once(&mut words.loader, args.value()?)?;
            } else if word.is("PATTERN") {
                once(&mut words.pattern, args.value()?)?;
            } else if word.is("ENFORCE") {
                once(&mut words.enforce, parse_enforce(args.value()?)?)?;
            } else {
                return Err(Error::Syntax);
            }
        }
        Ok(words)
    }

    /// What makes no sense without something else is a syntax error.
    fn check(&self) -> Result<(), Error> {
        let timed = self.negative.is_some() || self.sliding.is_some();
        let alone = (timed && self.expiry.is_none()) || (self.enforce.is_some() && self.pattern.is_none());
        if alone { Err(Error::Syntax) } else { Ok(()) }
    }
}

fn parse_enforce(word: Arg<'_>) -> Result<Enforce, Error> {
    Enforce::ALL.into_iter().find(|enforce| word.is(&enforce.word().to_ascii_uppercase())).ok_or(Error::Syntax)
}

fn checked_name(arg: Arg<'_>) -> Result<Box<[u8]>, Error> {
    let fits = (1..=MAX_NAME_LENGTH).contains(&arg.bytes.len());
    if fits { Ok(arg.bytes.into()) } else { Err(Error::PolicyNameLength) }
}

/// The empty prefix is that of every key.
fn checked_prefix(arg: Arg<'_>) -> Result<Box<[u8]>, Error> {
    let fits = arg.bytes.len() <= MAX_NAME_LENGTH;
    if fits { Ok(arg.bytes.into()) } else { Err(Error::PrefixLength) }
}

fn parse_negative(args: &Args<'_>, amount: Arg<'_>, unit: Arg<'_>) -> Result<i64, Error> {
    match in_range(args, parse_expiry(unit, amount, in_seconds(unit))?)? {
        Expiry::In(ms) | Expiry::At(ms) => Ok(ms),
    }
}

impl Command for Set {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.policy|set",
        family: Family::Cache,
        summary: "Sets what the writes and reads of keys with a prefix leave out, in place of what the policy said before.",
        complexity: "O(N) where N is the length of the prefix.",
        since: "0.1.0",
        arity: -3,
        flags: &[Flag::Write, Flag::Admin],
        keys: Keys::None,
        access: Access::None,
        tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
        args: &[
            NAME,
            ArgSpec::string("prefix").token("PREFIX").optional(),
            ArgSpec::one_of(
                "expiration",
                &[ArgSpec::integer("seconds").token("EX"), ArgSpec::integer("milliseconds").token("PX")],
            )
            .optional(),
            JITTER_SPEC.optional(),
            GRACE_SPEC,
            ArgSpec::word("sliding", "SLIDING").optional(),
            ArgSpec::integer("negative").token("NEGATIVE").optional(),
            BETA_SPEC,
            ArgSpec::string("percent%").token("AHEAD").optional(),
            ArgSpec::string("loader").token("LOADER").optional(),
            ArgSpec::string("pattern").token("PATTERN").optional(),
            ArgSpec::one_of(
                "enforce",
                &[ArgSpec::word("off", "OFF"), ArgSpec::word("warn", "WARN"), ArgSpec::word("reject", "REJECT")],
            )
            .token("ENFORCE")
            .optional(),
        ],
    };
    type Request<'a> = Policy;

    fn parse(args: &mut Args<'_>) -> Result<Policy, Error> {
        args.skip_subcommand();
        let name = args.required()?;
        let words = Words::parse(args)?;
        words.check()?;
        let age = Age::parse(args, words.expiry, words.jitter, words.grace)?;
        let ttl_ms = match age.expiry {
            Some(Expiry::In(ms)) => Some(ms),
            Some(Expiry::At(_)) | None => None,
        };
        let negative = words.negative.zip(words.expiry);
        Ok(Policy {
            name: checked_name(name)?,
            prefix: words.prefix.map(checked_prefix).transpose()?,
            terms: Terms { ttl_ms, jitter: age.jitter, grace_ms: age.grace },
            negative_ms: negative.map(|(amount, (unit, _))| parse_negative(args, amount, unit)).transpose()?,
            sliding: words.sliding.is_some(),
            beta: words.beta.map(parse_beta).transpose()?,
            ahead: words.ahead.map(|arg| parse_percent(arg.bytes, "AHEAD")).transpose()?,
            loader: words.loader.map(|arg| checked_loader(arg).map(|loader| loader.bytes.into())).transpose()?,
            pattern: words.pattern.map(|arg| KeyPattern::parse(arg.bytes).ok_or(Error::Pattern)).transpose()?,
            enforce: words.enforce.unwrap_or_default(),
        })
    }

    fn run<'s, S: Server>(policy: Policy, server: &'s mut S) -> Result<Reply<'s>, Error> {
        // What comes from the primary or the AOF was decided there.
        if !server.replayed() {
            check(server, &policy)?;
        }
        let policies = &mut server.state().cache.policies;
        if policies.get(&policy.name).is_none_or(|old| ***old != policy) {
            policies.put(policy);
            server.replicate_verbatim();
        }
        Ok(Reply::Ok)
    }
}

fn check<S: Server>(server: &mut S, policy: &Policy) -> Result<(), Error> {
    let now = server.now().to_ms();
    WriteOptions::default().expires_under(policy.terms, now, Set::SPEC.name)?;
    now.0.checked_add(policy.negative_ms.unwrap_or(0)).ok_or(Error::InvalidExpire(Set::SPEC.name))?;
    let state = server.state();
    let policies = &state.cache.policies;
    let holder = policy.prefix.as_ref().and_then(|prefix| policies.of_prefix(prefix));
    if holder.is_some_and(|holder| holder.name != policy.name) {
        return Err(Error::PrefixTaken);
    }
    let full = usize::try_from(state.config.policies_max).is_ok_and(|max| policies.len() >= max);
    if full && policies.get(&policy.name).is_none() {
        state.cache.counters.policies_full = state.cache.counters.policies_full.saturating_add(1);
        return Err(Error::TooManyPolicies);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Delete, Get, List, Match};
    use super::*;
    use crate::cache::commands::commit::{Commit, tests::intent};
    use crate::cache::commands::fetch::Fetch;
    use crate::cache::commands::fill::Fill;
    use crate::cache::commands::fill_nil::FillNil;
    use crate::cache::commands::mset::MSet;
    use crate::cache::commands::set;
    use crate::cache::commands::set_tagged::SetTagged;
    use crate::fake_server::FakeServer;
    use crate::writebehind::commands as writebehind;

    fn server(policies: &[&str]) -> FakeServer {
        let mut server = FakeServer::new();
        for policy in policies {
            server.call::<Set>(&format!("CACHE.POLICY SET {policy}")).unwrap();
        }
        server.take_replicated();
        server
    }

    fn token(server: &mut FakeServer, key: &str) -> String {
        let Ok(Reply::Array(told)) = server.call::<Fetch>(&format!("CACHE.FETCH {key}")) else { panic!() };
        let Reply::OwnedBytes(token) = told[2].clone() else { panic!("{told:?}") };
        String::from_utf8(token).unwrap()
    }

    /// The effects of a write, and how far the moments in them lie ahead.
    fn sent(server: &mut FakeServer) -> Vec<String> {
        let now = server.now.to_ms().0;
        let ahead = |word: &str| match word.parse::<i64>() {
            Ok(at) if at > 1_000_000_000_000 => format!("+{}", at - now),
            _ => word.to_owned(),
        };
        let effects = server.take_replicated();
        effects.iter().map(|effect| effect.split(' ').map(ahead).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn a_policy_fills_in_what_a_write_leaves_out() {
        let mut server = server(&["p PREFIX k EX 60 JITTER 10 GRACE 5"]);
        for (options, effect) in [
            ("", "PXAT +67000 GRACE 5000"),
            (" EX 100", "PXAT +107000 GRACE 5000"),
            (" PX 100 JITTER 3", "PXAT +103 GRACE 5000"),
            (" EX 100 JITTER 0 GRACE 0", "PXAT +100000"),
            (" GRACE 7 EX 1", "PXAT +8000 GRACE 7000"),
            (" TAGS 1 t VERSION 1", "PXAT +67000 GRACE 5000 TAGS 1 t VERSION 1"),
        ] {
            server.draws.push_back(7000);
            server.call::<set::Set>(&format!("CACHE.SET k v{options}")).unwrap();
            server.draws.clear();
            assert_eq!(sent(&mut server), [format!("CACHE.SET k v {effect}")], "{options}");
        }
        server.call::<set::Set>("CACHE.SET other v").unwrap();
        assert_eq!(server.take_replicated(), ["CACHE.SET other v"]);
    }

    #[test]
    fn a_jitter_in_percent_is_of_the_ttl_of_the_write() {
        let mut server = server(&["p PREFIX k PX 1000 JITTER 10%"]);
        server.draws.extend([i64::MAX as u64, i64::MAX as u64]);
        server.call::<set::Set>("CACHE.SET k v").unwrap();
        server.call::<set::Set>("CACHE.SET k v EX 100").unwrap();
        assert_eq!(sent(&mut server), ["CACHE.SET k v PXAT +1100", "CACHE.SET k v PXAT +110000"]);
    }

    #[test]
    fn an_absolute_write_is_not_sent_as_it_came_where_a_policy_has_a_say() {
        let mut server = server(&["p PREFIX k EX 60 GRACE 5", "q PREFIX q"]);
        let at = server.now.to_ms().0 + 100;
        server.call::<set::Set>(&format!("CACHE.SET k v PXAT {at}")).unwrap();
        assert_eq!(sent(&mut server), ["CACHE.SET k v PXAT +100 GRACE 5000"]);
        server.call::<set::Set>("CACHE.SET q v POLICY p").unwrap();
        assert_eq!(sent(&mut server), ["CACHE.SET q v PXAT +60000 GRACE 5000"]);
        server.call::<set::Set>("CACHE.SET k v POLICY q").unwrap();
        assert_eq!(sent(&mut server), ["CACHE.SET k v"], "the policy that is named is the only one");
    }

    #[test]
    fn every_cache_write_is_under_the_policy_of_its_key() {
        let mut server = server(&["p PREFIX k PX 60 NEGATIVE 7", "l PREFIX k:long PX 90"]);
        server.call::<MSet>("CACHE.MSET 3 k 1 k:long 2 other 3").unwrap();
        let effects = ["CACHE.SET k 1 PXAT +60", "CACHE.SET k:long 2 PXAT +90", "CACHE.SET other 3"];
        assert_eq!(sent(&mut server), effects);
        let first = token(&mut server, "k:fill");
        server.call::<Fill>(&format!("CACHE.FILL k:fill {first} v")).unwrap();
        assert_eq!(sent(&mut server), ["CACHE.SET k:fill v PXAT +60"]);
        let second = token(&mut server, "k:nil");
        server.call::<FillNil>(&format!("CACHE.FILLNIL k:nil {second}")).unwrap();
        assert_eq!(sent(&mut server), ["KEYWARD.APPLY NEGATIVE k:nil +7"]);
        let third = token(&mut server, "k:nil:2");
        server.call::<FillNil>(&format!("CACHE.FILLNIL k:nil:2 {third} PX 9")).unwrap();
        assert_eq!(sent(&mut server), ["KEYWARD.APPLY NEGATIVE k:nil:2 +9"]);
        let write = intent(&mut server, "k");
        server.take_replicated();
        server.call::<Commit>(&format!("CACHE.COMMIT k {write} new")).unwrap();
        assert_eq!(sent(&mut server)[0], "CACHE.SET k new PXAT +60");
        server.call::<writebehind::Set>("WRITEBEHIND.SET wb k v").unwrap();
        assert!(sent(&mut server).iter().any(|effect| effect.ends_with(" v PXAT +60")));
    }

    #[test]
    fn a_negative_without_an_expiry_needs_a_policy_that_has_one() {
        let mut server = server(&["p PREFIX k PX 60"]);
        for key in ["k", "other"] {
            let held = token(&mut server, key);
            assert_eq!(server.call::<FillNil>(&format!("CACHE.FILLNIL {key} {held}")), Err(Error::Syntax));
        }
    }

    #[test]
    fn what_is_required_is_required_whatever_the_policy() {
        let mut server = server(&["p PREFIX k PX 60"]);
        assert_eq!(server.call::<SetTagged>("CACHE.SETTAGGED k v PX 5 JITTER 1 NX"), Err(Error::Syntax));
        assert_eq!(server.call::<set::Set>("CACHE.SET k v GRACE 5"), Err(Error::Syntax), "in which unit?");
    }

    #[test]
    fn a_policy_that_is_not_there_cannot_be_named() {
        let mut server = server(&[]);
        assert_eq!(server.call::<set::Set>("CACHE.SET k v POLICY p"), Err(Error::NoSuchPolicy));
        assert_eq!(server.call::<MSet>("CACHE.MSET 1 k v POLICY p"), Err(Error::NoSuchPolicy));
        assert!(server.keys.is_empty());
        server.replayed = true;
        assert_eq!(server.call::<set::Set>("CACHE.SET k v POLICY p"), Ok(Reply::Ok), "it was decided elsewhere");
    }

    #[test]
    fn a_replica_asks_no_policy() {
        let mut server = server(&["p PREFIX k PX 60 PATTERN never ENFORCE reject"]);
        server.replayed = true;
        server.call::<set::Set>("CACHE.SET k v").unwrap();
        assert_eq!(server.key_expiry("k"), None);
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused_counted_or_let_through() {
        let mut server = server(&[
            "r PREFIX r: PATTERN r:{id} ENFORCE reject",
            "w PREFIX w: PATTERN w:{id} ENFORCE WARN",
            "o PREFIX o: PATTERN o:{id}",
        ]);
        let refused = || Error::KeyName(b"r"[..].into());
        assert_eq!(server.call::<set::Set>("CACHE.SET r:1:2 v"), Err(refused()));
        assert_eq!(refused().to_string(), "ERR key name does not match policy 'r'");
        assert_eq!(server.call::<MSet>("CACHE.MSET 2 r:1 v r:1:2 v"), Err(refused()), "all or nothing");
        assert!(server.keys.is_empty() && server.take_replicated().is_empty());
        for key in ["r:1", "w:1", "w:1:2", "o:1:2"] {
            assert_eq!(server.call::<set::Set>(&format!("CACHE.SET {key} v")), Ok(Reply::Ok), "{key}");
        }
        let counters = server.state.cache.counters;
        assert_eq!((counters.policy_rejections, counters.policy_warnings), (2, 1));
        let now = server.now.to_ms();
        assert!(server.state.cache.policies.log_line(now).unwrap().contains("'w:1:2'"));
    }

    #[test]
    fn a_policy_is_put_in_place_of_the_old_one_and_told_once() {
        let mut server = server(&["p PREFIX k EX 60 SLIDING"]);
        assert_eq!(server.call::<Set>("CACHE.POLICY SET p PREFIX k EX 60 SLIDING"), Ok(Reply::Ok));
        assert!(server.take_replicated().is_empty(), "nothing has changed");
        assert_eq!(server.call::<Set>("CACHE.POLICY SET p PREFIX other"), Ok(Reply::Ok));
        assert_eq!(server.take_replicated(), ["CACHE.POLICY SET p PREFIX other"]);
        assert_eq!(server.call::<Match>("CACHE.POLICY MATCH k"), Ok(Reply::Nil));
        let Ok(Reply::Map(fields)) = server.call::<Get>("CACHE.POLICY GET p") else { panic!() };
        assert_eq!((&fields[1], &fields[5]), (&("ttl_ms", Reply::Nil), &("sliding", Reply::Int(0))));
        assert_eq!(server.call::<List>("CACHE.POLICY LIST"), Ok(Reply::Array(vec![Reply::Bytes(b"p")])));
        assert_eq!(server.call::<Delete>("CACHE.POLICY DEL p"), Ok(Reply::Int(1)));
        assert_eq!(server.call::<Delete>("CACHE.POLICY DEL p"), Ok(Reply::Int(0)));
        assert_eq!(server.take_replicated(), ["CACHE.POLICY DEL p"]);
        assert_eq!(server.call::<Get>("CACHE.POLICY GET p"), Ok(Reply::Nil));
    }

    #[test]
    fn two_policies_cannot_share_a_prefix_and_there_are_not_too_many() {
        let mut server = server(&["p PREFIX k"]);
        server.state.config.policies_max = 1;
        assert_eq!(server.call::<Set>("CACHE.POLICY SET q PREFIX k"), Err(Error::PrefixTaken));
        assert_eq!(server.call::<Set>("CACHE.POLICY SET q PREFIX l"), Err(Error::TooManyPolicies));
        assert_eq!(server.call::<Set>("CACHE.POLICY SET p PREFIX l EX 1"), Ok(Reply::Ok), "one that is there");
        assert_eq!(server.state.cache.counters.policies_full, 1);
        server.replayed = true;
        assert_eq!(server.call::<Set>("CACHE.POLICY SET q PREFIX m"), Ok(Reply::Ok), "the primary had room");
        assert_eq!(server.state.cache.policies.len(), 2);
    }

    #[test]
    fn an_error_changes_nothing() {
        let mut server = server(&[]);
        let expire = || Error::InvalidExpire("cache.policy|set");
        for (options, error) in [
            ("FOO", Error::Syntax),
            ("PREFIX", Error::Syntax),
            ("PREFIX a PREFIX b", Error::Syntax),
            ("EX 5 PX 5", Error::Syntax),
            ("EXAT 5", Error::Syntax),
            ("JITTER 5", Error::Syntax),
            ("GRACE 5", Error::Syntax),
            ("NEGATIVE 5", Error::Syntax),
            ("SLIDING", Error::Syntax),
            ("EX 5 SLIDING SLIDING", Error::Syntax),
            ("ENFORCE warn", Error::Syntax),
            ("PATTERN a ENFORCE maybe", Error::Syntax),
            ("EX 0", expire()),
            ("EX 9223372036854775807", expire()),
            ("PX 9223372036854775807", expire()),
            ("PX 5 GRACE 9223372036854775807", expire()),
            ("PX 5 NEGATIVE 9223372036854775807", expire()),
            ("EX 5 NEGATIVE 0", expire()),
            ("EX x", Error::NotAnInteger),
            ("EX 5 GRACE -1", Error::NotAnInteger),
            ("EX 5 JITTER 101%", Error::Percent("JITTER")),
            ("AHEAD 5", Error::Percent("AHEAD")),
            ("AHEAD 101%", Error::Percent("AHEAD")),
            ("BETA -1", Error::Beta),
            ("PATTERN {", Error::Pattern),
            ("LOADER ", Error::LoaderLength),
        ] {
            assert_eq!(server.call::<Set>(&format!("CACHE.POLICY SET p {options}")), Err(error), "{options}");
        }
        let name = Err(Error::PolicyNameLength);
        assert_eq!(server.call::<Set>("CACHE.POLICY SET  EX 5"), name);
        assert!(server.state.cache.policies.is_empty() && server.take_replicated().is_empty());
        let wrong = |name| Err(Error::WrongArity(name));
        assert_eq!(server.call::<Set>("CACHE.POLICY SET"), wrong("cache.policy|set"));
        assert_eq!(server.call::<Get>("CACHE.POLICY GET a b"), wrong("cache.policy|get"));
        assert_eq!(server.call::<List>("CACHE.POLICY LIST a"), wrong("cache.policy|list"));
    }

    #[test]
    fn the_syntax_line_says_it_all() {
        assert_eq!(
            Set::SPEC.syntax(),
            "CACHE.POLICY SET name [PREFIX prefix] [EX seconds | PX milliseconds] [JITTER amount | percent%] \
             [GRACE grace] [SLIDING] [NEGATIVE negative] [BETA beta] [AHEAD percent%] [LOADER loader] \
             [PATTERN pattern] [ENFORCE OFF | WARN | REJECT]"
        );
    }
}
