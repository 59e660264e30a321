//! A limit as a caller writes it: `[SLIDING] count EX s|PX ms`.

use crate::args::{Arg, Args};
use crate::error::Error;
use crate::ratelimit::MAX_UNITS;
use crate::ratelimit::sliding_window::Window;
use crate::spec::{ArgSpec, Kind};

/// `count` units (1 to [`MAX_UNITS`]) in any window of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub count: i64,
    pub window: Window,
}

impl Limit {
    pub const SPEC: ArgSpec = ArgSpec::block(
        "limit",
        &[
            ArgSpec::word("sliding", "SLIDING").optional(),
            ArgSpec::integer("count"),
            ArgSpec::one_of(
                "window",
                &[ArgSpec::integer("seconds").token("EX"), ArgSpec::integer("milliseconds").token("PX")],
            ),
        ],
    );

    /// Does `cost` fit beside what is used?
    pub fn admits(self, used: i64, cost: i64) -> bool {
        cost <= self.count.saturating_sub(used)
    }

    pub fn parse(args: &mut Args<'_>) -> Result<Limit, Error> {
        let first = args.required()?;
        let count = if first.is("SLIDING") { args.required()? } else { first };
        let unit = args.required()?;
        let length = args.required()?;
        Ok(Limit { count: units("count", count)?, window: parse_window(unit, length, args.command())? })
    }
}

/// What a CHECK or PEEK asks: a key, a limit, and `COST n`, by default 1.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub key: Arg<'a>,
    pub limit: Limit,
    pub cost: i64,
}

impl<'a> Question<'a> {
    pub const SPEC: &'static [ArgSpec] =
        &[ArgSpec::key(), Limit::SPEC, ArgSpec::new("cost", Kind::Integer).token("COST").optional()];

    pub fn parse(args: &mut Args<'a>) -> Result<Question<'a>, Error> {
        let key = args.required()?;
        let limit = Limit::parse(args)?;
        let cost = match args.take() {
            Some(word) if word.is("COST") => units("COST", args.value()?)?,
            Some(_) => return Err(Error::Syntax),
            None => 1,
        };
        args.end()?;
        Ok(Question { key, limit, cost })
    }
}

fn units(what: &'static str, arg: Arg<'_>) -> Result<i64, Error> {
    let units = arg.int()?;
    if (1..=MAX_UNITS).contains(&units) { Ok(units) } else { Err(Error::CountRange(what, 1, MAX_UNITS)) }
}

fn parse_window(unit: Arg<'_>, length: Arg<'_>, command: &'static str) -> Result<Window, Error> {
    let ms_per_unit = if unit.is("EX") {
        1000
    } else if unit.is("PX") {
        1
    } else {
        return Err(Error::Syntax);
    };
    length.int()?.checked_mul(ms_per_unit).and_then(Window::from_ms).ok_or(Error::InvalidExpire(command))
}
