//! Limits as a caller writes them: `[SLIDING|GCRA|FIXED] count EX s|PX ms [BURST b] [RESERVE r]`, one or several.

use smallvec::SmallVec;

use crate::args::{Arg, Args, once};
use crate::error::Error;
use crate::ratelimit::MAX_UNITS;
use crate::ratelimit::meter::{Algorithm, Meter};
use crate::ratelimit::window::Window;
use crate::spec::{ArgSpec, Kind};

/// Most limits of one call.
pub const MAX_LIMITS: usize = 8;

pub type Limits = SmallVec<[Limit; 1]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub meter: Meter,
    /// How many units there are when nothing was consumed: the count, or what GCRA may admit at once.
    pub capacity: i64,
    /// The last units, which this caller may not use.
    pub reserve: i64,
}

/// What a call asks: a key, its limits, a cost, and how long it would wait.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    pub key: Arg<'a>,
    pub limits: Limits,
    pub cost: i64,
    /// 0: for as long as it takes.
    pub wait_ms: Option<i64>,
}

/// What may follow the limits of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// `[COST n]`, by default 1.
    Cost,
    /// `COST n`.
    RequiredCost,
    /// `[COST n] [WAIT ms]`.
    CostAndWait,
}

const EX: ArgSpec = ArgSpec::integer("seconds").token("EX");
const PX: ArgSpec = ArgSpec::integer("milliseconds").token("PX");
const COST: ArgSpec = ArgSpec::new("cost", Kind::Integer).token("COST");

impl Limit {
    pub const SPEC: ArgSpec = ArgSpec::block(
        "limit",
        &[
            ArgSpec::one_of(
                "algorithm",
                &[ArgSpec::word("sliding", "SLIDING"), ArgSpec::word("gcra", "GCRA"), ArgSpec::word("fixed", "FIXED")],
            )
            .optional(),
            ArgSpec::integer("count"),
            ArgSpec::one_of("window", &[EX, PX]),
            ArgSpec::integer("burst").token("BURST").optional(),
            ArgSpec::integer("reserve").token("RESERVE").optional(),
        ],
    )
    .multiple();

    /// Of `left` units, may this caller have `cost`?
    pub fn admits(self, left: i64, cost: i64) -> bool {
        cost <= left.saturating_sub(self.reserve)
    }

    /// Could this caller ever have `cost`?
    pub fn can_fit(self, cost: i64) -> bool {
        self.admits(self.capacity, cost)
    }

    /// A limit, whose first word has been taken.
    fn parse(first: Arg<'_>, args: &mut Args<'_>) -> Result<Limit, Error> {
        let named = Algorithm::named(first);
        let count = if named.is_some() { args.required()? } else { first };
        if count.bytes.first().is_some_and(u8::is_ascii_alphabetic) {
            return Err(Error::Syntax);
        }
        let (unit, length) = (args.required()?, args.required()?);
        let (mut burst, mut reserve) = (None, None);
        while let Some(word) = args.peek() {
            let slot = match () {
                () if word.is("BURST") => &mut burst,
                () if word.is("RESERVE") => &mut reserve,
                () => break,
            };
            args.take();
            once(slot, args.value()?)?;
        }
        let algorithm = named.unwrap_or(Algorithm::Sliding);
        if burst.is_some() && !matches!(algorithm, Algorithm::Gcra { .. }) {
            return Err(Error::Syntax);
        }
        let count = units("count", count, 1)?;
        let window = parse_window(unit, length, args.command())?;
        let capacity = match burst {
            Some(burst) => units("BURST", burst, 1)?,
            None => count,
        };
        let reserve = match reserve {
            Some(reserve) => units("RESERVE", reserve, 0)?,
            None => 0,
        };
        let algorithm = match algorithm {
            Algorithm::Gcra { .. } => Algorithm::Gcra { rate: count },
            other => other,
        };
        Ok(Limit { meter: Meter { algorithm, window }, capacity, reserve })
    }
}

impl<'a> Question<'a> {
    pub const SPEC: &'static [ArgSpec] = &[ArgSpec::key(), Limit::SPEC, COST.optional()];

    pub const SPEC_WITH_WAIT: &'static [ArgSpec] =
        &[ArgSpec::key(), Limit::SPEC, COST.optional(), ArgSpec::integer("milliseconds").token("WAIT").optional()];

    pub const SPEC_WITH_COST: &'static [ArgSpec] = &[ArgSpec::key(), Limit::SPEC, COST];

    /// # Errors
    /// `Syntax` also for two limits of the same algorithm and window, `LimitCount` for more than [`MAX_LIMITS`].
    pub fn parse(args: &mut Args<'a>, tail: Tail) -> Result<Question<'a>, Error> {
        let key = args.required()?;
        let mut limits = Limits::new();
        let mut first = args.required()?;
        let (mut cost, mut wait) = (None, None);
        loop {
            let limit = Limit::parse(first, args)?;
            if limits.iter().any(|other| other.meter.is_alike(limit.meter)) {
                return Err(Error::Syntax);
            }
            limits.push(limit);
            match args.take() {
                None => break,
                Some(word) if word.is("COST") || word.is("WAIT") => {
                    tail_options(word, args, (&mut cost, &mut wait), tail)?;
                    break;
                }
                Some(_) if limits.len() == MAX_LIMITS => return Err(Error::LimitCount),
                Some(word) => first = word,
            }
        }
        let cost = match cost {
            Some(cost) => units("COST", cost, 1)?,
            None if tail == Tail::RequiredCost => return Err(Error::Syntax),
            None => 1,
        };
        let wait_ms = wait.map(|wait| wait.int_within("WAIT", 0, i64::MAX)).transpose()?;
        Ok(Question { key, limits, cost, wait_ms })
    }
}

type Given<'s, 'a> = &'s mut Option<Arg<'a>>;

fn tail_options<'a>(
    mut word: Arg<'a>,
    args: &mut Args<'a>,
    (cost, wait): (Given<'_, 'a>, Given<'_, 'a>),
    tail: Tail,
) -> Result<(), Error> {
    loop {
        if word.is("COST") {
            once(cost, args.value()?)?;
        } else if word.is("WAIT") && tail == Tail::CostAndWait {
            once(wait, args.value()?)?;
        } else {
            return Err(Error::Syntax);
        }
        match args.take() {
            Some(next) => word = next,
            None => return Ok(()),
        }
    }
}

fn units(what: &'static str, arg: Arg<'_>, least: i64) -> Result<i64, Error> {
    arg.int_within(what, least, MAX_UNITS)
}

fn parse_window(unit: Arg<'_>, length: Arg<'_>, command: &'static str) -> Result<Window, Error> {
    let ms_per_unit = if unit.is("EX") {
        1000
    } else if unit.is("PX") {
        1
    } else {
        return Err(Error::Syntax);
    };
    match length.int()?.checked_mul(ms_per_unit).and_then(Window::from_ms) {
        Some(window) => Ok(window),
        None => Err(Error::InvalidExpire(command)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(line: &str, tail: Tail) -> Result<(Limits, i64, Option<i64>), Error> {
        let argv: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        Question::parse(&mut Args::new(&argv, "ratelimit.check"), tail).map(|q| (q.limits, q.cost, q.wait_ms))
    }

    fn parse(line: &str) -> Result<(i64, i64, i64), Error> {
        let (limits, cost, _) = question(line, Tail::Cost)?;
        Ok((limits[0].capacity, limits[0].meter.window.ms(), cost))
    }

    fn limit(algorithm: Algorithm, ms: i64, capacity: i64, reserve: i64) -> Limit {
        Limit { meter: Meter { algorithm, window: Window::from_ms(ms).unwrap() }, capacity, reserve }
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
    fn several_limits_stand_one_behind_the_other() {
        let line =
            "c k 10 EX 1 gcra 20 EX 60 RESERVE 2 burst 5 FIXED 30 PX 60000 reserve 0 SLIDING 40 EX 60 WAIT 9 COST 3";
        let gcra = Algorithm::Gcra { rate: 20 };
        let limits = [
            limit(Algorithm::Sliding, 1000, 10, 0),
            limit(gcra, 60_000, 5, 2),
            limit(Algorithm::Fixed, 60_000, 30, 0),
            limit(Algorithm::Sliding, 60_000, 40, 0),
        ];
        assert_eq!(question(line, Tail::CostAndWait), Ok((Limits::from_slice(&limits), 3, Some(9))));
        assert_eq!(question("c k 1 EX 1 WAIT 0", Tail::CostAndWait).unwrap().2, Some(0));
    }

    #[test]
    fn two_limits_alike_are_a_syntax_error_and_nine_are_too_many() {
        for line in ["c k 10 EX 1 20 PX 1000", "c k GCRA 10 EX 1 GCRA 20 EX 1", "c k FIXED 1 EX 1 5 EX 1 FIXED 1 EX 1"]
        {
            assert_eq!(parse(line), Err(Error::Syntax), "{line}");
        }
        let nine: String = (1..=9).map(|ex| format!(" 5 EX {ex}")).collect();
        assert_eq!(parse(&format!("c k{nine}")), Err(Error::LimitCount));
        assert_eq!(question(&format!("c k{}", nine.strip_suffix(" 5 EX 9").unwrap()), Tail::Cost).unwrap().0.len(), 8);
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
    fn counts_and_costs_are_1_to_10_to_the_12() {
        for units in ["0", "-1", "1000000000001"] {
            let refused = |what| Err(Error::CountRange(what, 1, MAX_UNITS));
            assert_eq!(parse(&format!("c k {units} EX 1")), refused("count"));
            assert_eq!(parse(&format!("c k 1 EX 1 COST {units}")), refused("COST"));
            assert_eq!(parse(&format!("c k GCRA 1 EX 1 BURST {units}")), refused("BURST"));
        }
        assert_eq!(parse("c k 1 EX 1 RESERVE -1"), Err(Error::CountRange("RESERVE", 0, MAX_UNITS)));
        assert_eq!(parse("c k 01 EX 1"), Err(Error::NotAnInteger));
        assert_eq!(parse("c k 1 EX 1 COST +1"), Err(Error::NotAnInteger));
    }

    #[test]
    fn anything_else_is_a_syntax_error() {
        for rest in [
            "10 EAT 1",
            "10 EX 1 COST",
            "10 EX 1 COST 1 COST 1",
            "10 EX 1 COST 1 5 EX 2",
            "10 EX 1 PX 1",
            "10 EX 1 BURST 5",
            "FIXED 10 EX 1 BURST 5",
            "GCRA 10 EX 1 BURST 5 BURST 5",
            "GCRA 10 EX 1 BURST",
            "10 EX 1 RESERVE 5 RESERVE 5",
            "10 EX 1 WAIT 5",
            "10 EX 1 NOW",
        ] {
            assert_eq!(parse(&format!("c k {rest}")), Err(Error::Syntax), "{rest}");
        }
        assert_eq!(parse("c k 10 EX"), Err(Error::WrongArity("ratelimit.check")));
        assert_eq!(parse("c k SLIDING SLIDING 10 EX 1"), Err(Error::Syntax));
        assert_eq!(question("c k 10 EX 1", Tail::RequiredCost), Err(Error::Syntax));
        assert_eq!(question("c k 10 EX 1 WAIT -1", Tail::CostAndWait), Err(Error::CountRange("WAIT", 0, i64::MAX)));
    }
}
