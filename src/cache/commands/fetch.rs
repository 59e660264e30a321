//! CACHE.FETCH

use crate::args::{Arg, Args, once};
use crate::cache::early_refresh::BETA_MAX;
use crate::cache::policies::InForce;
use crate::cache::single_flight::{self, By, Outcome, Wish};
use crate::cache::{governed, waiters};
use crate::commands::Command;
use crate::config::Config;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys, Kind};

pub struct Fetch;

/// How long a lease lasts unless the caller says otherwise, in milliseconds.
const LEASE_MS: i64 = 10_000;

pub(super) const LEASE_SPEC: ArgSpec = ArgSpec::integer("milliseconds").token("LEASE").optional();
pub(super) const STALE_SPEC: ArgSpec =
    ArgSpec::one_of("stale", &[ArgSpec::word("ok", "OK"), ArgSpec::word("never", "NEVER")]).token("STALE").optional();
pub(in crate::cache) const BETA_SPEC: ArgSpec = ArgSpec::new("beta", Kind::Double).token("BETA").optional();

/// What FETCH and MFETCH ask for.
#[derive(Debug, Default)]
pub struct Options {
    wait_ms: Option<i64>,
    lease_ms: Option<i64>,
    stale_never: bool,
    beta: Option<f64>,
}

impl Options {
    #[inline(always)]
    pub(super) fn parse(args: &mut Args<'_>, may_wait: bool) -> Result<Options, Error> {
        let (mut wait, mut lease, mut stale, mut beta) = (None, None, None, None);
        while let Some(word) = args.take() {
            if word.is("WAIT") && may_wait {
                once(&mut wait, args.value()?)?;
            } else if word.is("LEASE") {
                once(&mut lease, args.value()?)?;
            } else if word.is("BETA") {
                once(&mut beta, args.value()?)?;
            } else if word.is("STALE") {
                once(&mut stale, parse_stale_never(args)?)?;
            } else {
                return Err(Error::Syntax);
            }
        }
        Ok(Options {
            wait_ms: wait.map(|arg| arg.int_within("WAIT", 0, i64::MAX)).transpose()?,
            lease_ms: lease.map(|arg| arg.int()).transpose()?,
            stale_never: stale.unwrap_or(false),
            beta: beta.map(parse_beta).transpose()?,
        })
    }

    pub(super) fn wish(&self, config: &Config) -> Result<Wish<'static>, Error> {
        let lease_ms = lease_ms(self.lease_ms, config)?;
        Ok(Wish { by: By::Caller { lease_ms }, stale_ok: !self.stale_never, beta: self.beta.unwrap_or(0.0) })
    }

    /// The same for a key of this policy.
    pub(super) fn under(&self, policy: Option<&InForce>, wish: Wish<'static>) -> Wish<'static> {
        let beta = self.beta.or_else(|| policy?.beta);
        beta.map_or(wish, |beta| Wish { beta, ..wish })
    }
}

/// The word after STALE: is it NEVER?
pub(super) fn parse_stale_never(args: &mut Args<'_>) -> Result<bool, Error> {
    let word = args.value()?;
    if word.is("OK") || word.is("NEVER") { Ok(word.is("NEVER")) } else { Err(Error::Syntax) }
}

/// The lease that was asked for, or the default.
pub(super) fn lease_ms(wanted: Option<i64>, config: &Config) -> Result<i64, Error> {
    wanted.map_or(Ok(LEASE_MS.min(config.lease_max_ms)), |ms| checked_lease(ms, config))
}

/// 1 to `lease-max-ms`.
pub(super) fn checked_lease(ms: i64, config: &Config) -> Result<i64, Error> {
    let range = 1..=config.lease_max_ms;
    if range.contains(&ms) { Ok(ms) } else { Err(Error::CountRange("LEASE", 1, config.lease_max_ms)) }
}

pub(in crate::cache) fn parse_beta(arg: Arg<'_>) -> Result<f64, Error> {
    // Digits and a point: Rust would read `inf`, `nan` and exponents too.
    let plain = arg.bytes.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.');
    let beta = str::from_utf8(arg.bytes).ok().filter(|_| plain).and_then(|text| text.parse::<f64>().ok());
    beta.filter(|beta| (0.0..=BETA_MAX).contains(beta)).ok_or(Error::Beta)
}

#[derive(Debug)]
pub struct Request<'a> {
    key: Arg<'a>,
    options: Options,
}

impl Command for Fetch {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.fetch",
        family: Family::Cache,
        summary: "Returns a cached value, or elects the caller to load it while others wait.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: -2,
        flags: &[Flag::ReadOnly, Flag::Blocking],
        keys: Keys::First,
        access: Access::Read,
        tips: &["nondeterministic_output"],
        args: &[
            ArgSpec::key(),
            ArgSpec::integer("milliseconds").token("WAIT").optional(),
            LEASE_SPEC,
            STALE_SPEC,
            BETA_SPEC,
        ],
    };
    type Request<'a> = Request<'a>;

    #[inline(always)]
    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        Ok(Request { key: args.required()?, options: Options::parse(args, true)? })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, options } = request;
        let wish = options.wish(&server.state().config)?;
        let policy = governed::of_read(server, key);
        let wish = options.under(policy.as_deref(), wish);
        let found = single_flight::find(server, key, wish)?;
        if let Some(value) = single_flight::hit(server, key, found, wish) {
            governed::was_hit(server, key, policy.as_deref());
            return Ok(Reply::Hit(server.bytes(value)));
        }
        let outcome = single_flight::decide(server, key, found, wish)?;
        if outcome.is_hit() {
            governed::was_hit(server, key, policy.as_deref());
        }
        if let (Outcome::Busy, Some(wait_ms)) = (&outcome, options.wait_ms)
            && let Some(later) = waiters::wait(server, key, wish, wait_ms)
        {
            return Ok(later);
        }
        Ok(outcome.into_reply(server))
    }
}
