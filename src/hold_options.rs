//! The options of what is held for a limited time, a lock or a slot: `EX seconds | PX milliseconds`, `WAIT milliseconds`,
//! `SESSION`.

use crate::args::{Arg, Args, once};
use crate::clock::UnixMs;
use crate::error::Error;
use crate::server::Server;
use crate::spec::ArgSpec;

/// The lease in COMMAND DOCS.
pub const LEASE_SPEC: ArgSpec =
    ArgSpec::one_of("lease", &[ArgSpec::integer("seconds").token("EX"), ArgSpec::integer("milliseconds").token("PX")]);

pub const WAIT_SPEC: ArgSpec = ArgSpec::integer("milliseconds").token("WAIT").optional();
pub const SESSION_SPEC: ArgSpec = ArgSpec::word("session", "SESSION").optional();

/// The lease option while the arguments are read: at most one, and one there must be.
#[derive(Default)]
pub struct LeaseOption<'a> {
    given: Option<(Arg<'a>, i64)>,
}

/// A lease: 1 ms or longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    ms: i64,
}

/// How to get it, and with what else it is to end.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// 0: for as long as it takes.
    pub wait_ms: Option<i64>,
    session: bool,
}

/// The same while the arguments are read.
#[derive(Default)]
pub struct OptionWords<'a> {
    wait: Option<Arg<'a>>,
    session: Option<()>,
}

impl<'a> LeaseOption<'a> {
    /// Takes the option if `word` begins it. False: the word is another one.
    pub fn take(&mut self, word: Arg<'a>, args: &mut Args<'a>) -> Result<bool, Error> {
        let unit_ms = match () {
            () if word.is("EX") => 1000,
            () if word.is("PX") => 1,
            () => return Ok(false),
        };
        once(&mut self.given, (args.value()?, unit_ms))?;
        Ok(true)
    }

    /// To be called when all words are read, so that a wrong word is told before a wrong number, as in SET.
    pub fn finish(self, command: &'static str) -> Result<Lease, Error> {
        let (amount, unit_ms) = self.given.ok_or(Error::Syntax)?;
        match amount.int()?.checked_mul(unit_ms) {
            Some(ms) if ms > 0 => Ok(Lease { ms }),
            _ => Err(Error::InvalidExpire(command)),
        }
    }
}

impl Lease {
    pub fn ms(self) -> i64 {
        self.ms
    }

    /// When a lease that begins `now` ends.
    pub fn deadline(self, now: UnixMs, command: &'static str) -> Result<UnixMs, Error> {
        now.0.checked_add(self.ms).map(UnixMs).ok_or(Error::InvalidExpire(command))
    }
}

impl<'a> OptionWords<'a> {
    /// False: the word is another one.
    pub fn take(&mut self, word: Arg<'a>, args: &mut Args<'a>) -> Result<bool, Error> {
        if word.is("WAIT") {
            once(&mut self.wait, args.value()?)?;
        } else if word.is("SESSION") {
            once(&mut self.session, ())?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    pub fn finish(self) -> Result<Options, Error> {
        let wait_ms = self.wait.map(|wait| wait.int_within("WAIT", 0, i64::MAX)).transpose()?;
        Ok(Options { wait_ms, session: self.session.is_some() })
    }
}

impl Options {
    /// The connection that it is to end with.
    pub fn connection<S: Server>(self, server: &S) -> Result<Option<u64>, Error> {
        if self.session { server.connection().map(Some).ok_or(Error::NeedsConnection) } else { Ok(None) }
    }
}
