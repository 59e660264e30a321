//! CACHE.POLICY GET

use super::{NAME, only_argument};
use crate::args::{Arg, Args};
use crate::cache::policies::Policy;
use crate::cache::write_options::Jitter;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, CommandSpec, Family, Flag, Keys};

pub struct Get;

impl Command for Get {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.policy|get",
        family: Family::Cache,
        summary: "Returns what a policy says.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 3,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::None,
        access: Access::None,
        tips: &[],
        args: &[NAME],
    };
    type Request<'a> = Arg<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
        only_argument(args)
    }

    fn run<'s, S: Server>(name: Arg<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        Ok(server.state().cache.policies.get(name.bytes).map_or(Reply::Nil, |policy| describe(policy)))
    }
}

/// Nil where the policy says nothing.
fn describe(policy: &Policy) -> Reply<'_> {
    let number = |number: Option<i64>| number.map_or(Reply::Nil, Reply::Int);
    let bytes = |bytes: Option<&Box<[u8]>>| bytes.map_or(Reply::Nil, |bytes| Reply::OwnedBytes(bytes.to_vec()));
    let (jitter_ms, jitter_percent) = match policy.terms.jitter {
        Some(Jitter::Ms(ms)) => (Some(ms), None),
        Some(Jitter::Percent(percent)) => (None, Some(percent)),
        None => (None, None),
    };
    let pattern = policy.pattern.as_ref();
    Reply::Map(vec![
        ("prefix", bytes(policy.prefix.as_ref())),
        ("ttl_ms", number(policy.terms.ttl_ms)),
        ("jitter_ms", number(jitter_ms)),
        ("jitter_percent", number(jitter_percent)),
        ("grace_ms", number(policy.terms.grace_ms)),
        ("sliding", Reply::yes_no(policy.sliding)),
        ("negative_ms", number(policy.negative_ms)),
        ("beta", policy.beta.map_or(Reply::Nil, |beta| Reply::OwnedBytes(beta.to_string().into_bytes()))),
        ("ahead_percent", number(policy.ahead)),
        ("loader", bytes(policy.loader.as_ref())),
        ("pattern", pattern.map_or(Reply::Nil, |pattern| Reply::Bytes(pattern.text()))),
        ("enforce", Reply::Word(policy.enforce.word())),
    ])
}
