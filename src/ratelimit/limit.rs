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
        // A word here is the name of an algorithm.
        let count = if first.is("SLIDING") { args.required()? } else { first };
        if count.bytes.first().is_some_and(u8::is_ascii_alphabetic) {
            return Err(Error::Syntax);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<(i64, i64, i64), Error> {
        let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        Question::parse(&mut Args::new(&argv, "ratelimit.check"))
            .map(|question| (question.limit.count, question.limit.window.ms(), question.cost))
    }

    #[test]
    fn a_limit_is_a_count_and_a_window() {
        assert_eq!(parse("c k 100 EX 60"), Ok((100, 60_000, 1)));
        assert_eq!(parse("c k sliding 100 px 1 cost 7"), Ok((100, 1, 7)));
        assert_eq!(
            parse("c k 1000000000000 EX 1000000000 COST 1000000000000"),
            Ok((MAX_UNITS, Window::MAX_MS, MAX_UNITS))
        );
    }

    #[test]
    fn a_window_is_1_ms_to_10_to_the_12_ms() {
        for window in ["EX 0", "PX 0", "EX -1", "PX -1", "EX 1000000001", "PX 1000000000001", "EX 9223372036854775807"]
        {
            assert_eq!(parse(&format!("c k 10 {window}")), Err(Error::InvalidExpire("ratelimit.check")), "{window}");
        }
        assert_eq!(parse("c k 10 PX 9223372036854775808"), Err(Error::NotAnInteger));
        assert_eq!(parse("c k 10 EX 1.5"), Err(Error::NotAnInteger));
    }

    #[test]
    fn count_and_cost_are_1_to_10_to_the_12() {
        for units in ["0", "-1", "1000000000001"] {
            assert_eq!(parse(&format!("c k {units} EX 1")), Err(Error::CountRange("count", 1, MAX_UNITS)));
            assert_eq!(parse(&format!("c k 1 EX 1 COST {units}")), Err(Error::CountRange("COST", 1, MAX_UNITS)));
        }
        assert_eq!(parse("c k 01 EX 1"), Err(Error::NotAnInteger));
        assert_eq!(parse("c k 1 EX 1 COST +1"), Err(Error::NotAnInteger));
    }

    #[test]
    fn anything_else_is_a_syntax_error() {
        for rest in [
            "10 EAT 1",
            "10 EX 1 COST",
            "10 EX 1 COST 1 COST 1",
            "10 EX 1 PX 1",
            "10 EX 1 5 EX 2",
            "10 EX 1 BURST 5",
            "10 EX 1 RESERVE 5",
            "10 EX 1 WAIT 5",
        ] {
            assert_eq!(parse(&format!("c k {rest}")), Err(Error::Syntax), "{rest}");
        }
        assert_eq!(parse("c k 10 EX"), Err(Error::WrongArity("ratelimit.check")));
        for algorithm in ["GCRA", "FIXED"] {
            assert_eq!(parse(&format!("c k {algorithm} 10 EX 1")), Err(Error::Syntax), "{algorithm}");
        }
        assert_eq!(parse("c k SLIDING SLIDING 10 EX 1"), Err(Error::Syntax));
    }
}
