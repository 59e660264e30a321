//! CACHE.MFETCH

use smallvec::SmallVec;

use super::fetch::{BETA_SPEC, LEASE_SPEC, Options, STALE_SPEC};
use crate::args::{Arg, Args};
use crate::cache::{governed, single_flight};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct MFetch;

/// More than the server takes as arguments of one command.
const MAX_KEYS: i64 = 1_000_000;

#[derive(Debug)]
pub struct Request<'a> {
    keys: SmallVec<[Arg<'a>; 16]>,
    options: Options,
}

impl Command for MFetch {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.mfetch",
        family: Family::Cache,
        summary: "Returns several cached values, and elects the caller to load those that are missing.",
        complexity: "O(N) where N is the number of keys.",
        since: "0.1.0",
        arity: -3,
        flags: &[Flag::ReadOnly, Flag::Blocking],
        keys: Keys::Counted { step: 1 },
        access: Access::Read,
        tips: &["nondeterministic_output"],
        args: &[ArgSpec::integer("numkeys"), ArgSpec::key().multiple(), LEASE_SPEC, STALE_SPEC, BETA_SPEC],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let count = args.required()?.int()?;
        let keys = usize::try_from(count).ok().filter(|_| (1..=MAX_KEYS).contains(&count));
        let keys = args.list(keys.ok_or(Error::CountRange("numkeys", 1, MAX_KEYS))?)?.collect();
        Ok(Request { keys, options: Options::parse(args, false)? })
    }

    /// First all are looked up, so that one of another type fails the call before anybody is elected. A key that is named
    /// twice is `MISS`, then `BUSY`.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { keys, options } = request;
        let wish = options.wish(&server.state().config)?;
        let mut found: SmallVec<[_; 16]> = SmallVec::new();
        for key in keys {
            let policy = governed::of_read(server, key);
            let wish = options.under(policy.as_deref(), wish);
            found.push((key, policy, wish, single_flight::find(server, key, wish)?));
        }
        let mut outcomes = Vec::with_capacity(found.len());
        for (key, policy, wish, found) in found {
            let outcome = single_flight::decide(server, key, found, wish)?;
            if outcome.is_hit() {
                governed::was_hit(server, key, policy.as_deref());
            }
            outcomes.push(outcome);
        }
        let server = &*server;
        Ok(Reply::Array(outcomes.into_iter().map(|outcome| outcome.into_reply(server)).collect()))
    }
}
