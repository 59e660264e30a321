//! `EX seconds | PX milliseconds`: how long a lock is wanted.

use crate::args::{Arg, Args, once};
use crate::clock::UnixMs;
use crate::error::Error;
use crate::spec::ArgSpec;

/// The argument in COMMAND DOCS.
pub const SPEC: ArgSpec =
    ArgSpec::one_of("lease", &[ArgSpec::integer("seconds").token("EX"), ArgSpec::integer("milliseconds").token("PX")]);

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
