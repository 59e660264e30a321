//! The options that the writing commands share: `EX|PX|EXAT|PXAT`, `JITTER`, `GRACE`, `TAGS`, `NX|XX`, `VERSION`, `POLICY`.

use smallvec::SmallVec;

use super::tag_index::MAX_TAGS;
use crate::args::{Arg, Args, once, parse_int};
use crate::clock::UnixMs;
use crate::error::Error;
use crate::spec::ArgSpec;

/// The longest tag, in bytes.
pub const MAX_TAG_LENGTH: usize = 512;

/// The distinct tags of a write, in the order given; inline for as many as entries usually have.
pub type TagList<'a> = SmallVec<[Arg<'a>; 6]>;

#[derive(Debug, Default)]
pub struct WriteOptions<'a> {
    pub expiry: Option<Expiry>,
    pub jitter: Option<Jitter>,
    /// How long the key lives on, stale, past its expiry, in milliseconds; 0 and more.
    pub grace: Option<i64>,
    /// Empty: no `TAGS`, the key ends without tags.
    pub tags: TagList<'a>,
    pub condition: Option<Condition>,
    /// At most 2^63 - 1.
    pub version: Option<u64>,
    /// The name of the policy that is to fill in what is left out, whatever the key.
    pub policy: Option<Arg<'a>>,
}

/// What a policy fills in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// In milliseconds, above 0.
    pub ttl_ms: Option<i64>,
    pub jitter: Option<Jitter>,
    pub grace_ms: Option<i64>,
}

/// When the key shall expire, in milliseconds, always above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    In(i64),
    At(i64),
}

/// The most that is added to an expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jitter {
    Ms(i64),
    /// 0 to 100, of the time from now to the expiry.
    Percent(i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `NX`: only if the key is missing.
    Missing,
    /// `XX`: only if the key is there.
    Present,
}

pub(super) const EXPIRY_SPEC: ArgSpec = ArgSpec::one_of(
    "expiration",
    &[
        ArgSpec::integer("seconds").token("EX"),
        ArgSpec::integer("milliseconds").token("PX"),
        ArgSpec::unix_time("unix-time-seconds").token("EXAT"),
        ArgSpec::unix_time("unix-time-milliseconds").token("PXAT"),
    ],
);
pub(super) const JITTER_SPEC: ArgSpec =
    ArgSpec::one_of("jitter", &[ArgSpec::integer("amount"), ArgSpec::string("percent%")]).token("JITTER");
pub(super) const GRACE_SPEC: ArgSpec = ArgSpec::integer("grace").token("GRACE").optional();
pub(super) const TAGS_SPEC: ArgSpec =
    ArgSpec::block("tags", &[ArgSpec::integer("numtags"), ArgSpec::string("tag").multiple()]).token("TAGS");
pub(super) const CONDITION_SPEC: ArgSpec =
    ArgSpec::one_of("condition", &[ArgSpec::word("nx", "NX"), ArgSpec::word("xx", "XX")]).optional();
pub(super) const VERSION_SPEC: ArgSpec = ArgSpec::integer("version").token("VERSION").optional();
pub(super) const POLICY_SPEC: ArgSpec = ArgSpec::string("policy").token("POLICY").optional();

impl<'a> WriteOptions<'a> {
    /// Reads all that is left of the arguments. Words are judged first and numbers after them, as SET does, so that a
    /// misspelt option is a syntax error whatever else is wrong.
    pub fn parse(args: &mut Args<'a>) -> Result<WriteOptions<'a>, Error> {
        let (mut expiry, mut jitter, mut grace) = (None, None, None);
        let (mut tags, mut condition, mut version, mut policy) = (None, None, None, None);
        while let Some(word) = args.take() {
            if word.is("EX") || word.is("PX") || word.is("EXAT") || word.is("PXAT") {
                once(&mut expiry, (word, args.value()?))?;
            } else if word.is("TAGS") {
                once(&mut tags, counted_tags(args)?)?;
            } else if word.is("JITTER") {
                once(&mut jitter, args.value()?)?;
            } else if word.is("GRACE") {
                once(&mut grace, args.value()?)?;
            } else if word.is("VERSION") {
                once(&mut version, args.value()?)?;
            } else if word.is("POLICY") {
                once(&mut policy, args.value()?)?;
            } else if word.is("NX") {
                once(&mut condition, Condition::Missing)?;
            } else if word.is("XX") {
                once(&mut condition, Condition::Present)?;
            } else {
                return Err(Error::Syntax);
            }
        }
        let Age { expiry, jitter, grace } = Age::parse(args, expiry, jitter, grace)?;
        Ok(WriteOptions {
            expiry,
            jitter,
            grace,
            tags: tags.unwrap_or_default(),
            condition,
            version: version.map(parse_version).transpose()?,
            policy,
        })
    }

    /// Does the command, as it came, say all that a replica needs, with no clock and no draw?
    pub fn is_absolute(&self) -> bool {
        let relative = matches!(self.expiry, Some(Expiry::In(_)));
        !relative && self.jitter.is_none() && self.condition.is_none() && self.policy.is_none()
    }

    /// The moment of expiry and the most that may be added to it, `None` if there is no expiry. `command` is for the error,
    /// which says that the moment lies beyond the range of an integer.
    pub fn expires(&self, now: UnixMs, command: &'static str) -> Result<Option<Expires>, Error> {
        self.expires_under(Terms::default(), now, command)
    }

    /// The same where a policy fills in what is left out.
    #[inline]
    pub fn expires_under(&self, terms: Terms, now: UnixMs, command: &'static str) -> Result<Option<Expires>, Error> {
        let Some(expiry) = self.expiry.or(terms.ttl_ms.map(Expiry::In)) else { return Ok(None) };
        let grace_ms = self.grace.or(terms.grace_ms).unwrap_or(0);
        let expires = || {
            let at = match expiry {
                Expiry::In(ms) => now.0.checked_add(ms)?,
                Expiry::At(ms) => ms,
            };
            let jitter = match self.jitter.or(terms.jitter) {
                None => 0,
                Some(Jitter::Ms(most)) => most,
                Some(Jitter::Percent(percent)) => percent_of(at.saturating_sub(now.0).max(0), percent)?,
            };
            at.checked_add(jitter)?.checked_add(grace_ms)?;
            Some(Expires { at: UnixMs(at), jitter: u64::try_from(jitter).ok()?, grace_ms })
        };
        expires().map(Some).ok_or(Error::InvalidExpire(command))
    }
}

/// An expiry that is known to be in range, whatever is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expires {
    at: UnixMs,
    jitter: u64,
    grace_ms: i64,
}

/// The expiry of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// From then on the value is stale, or gone if there is no grace.
    pub soft: UnixMs,
    pub grace_ms: i64,
}

impl Lifetime {
    /// The end of the grace.
    pub fn hard(self) -> UnixMs {
        self.soft.plus(self.grace_ms)
    }
}

impl Expires {
    /// The expiry of one key; `draw` answers uniformly in `0..=most`. Nothing is drawn without a jitter.
    pub fn draw(self, draw: impl FnOnce(u64) -> u64) -> Lifetime {
        let drawn = if self.jitter == 0 { 0 } else { i64::try_from(draw(self.jitter)).unwrap_or(0) };
        Lifetime { soft: self.at.plus(drawn), grace_ms: self.grace_ms }
    }
}

/// An expiry, and the options that are in its unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Age {
    pub expiry: Option<Expiry>,
    pub jitter: Option<Jitter>,
    pub grace: Option<i64>,
}

impl Age {
    /// `expiry` is the word and the amount.
    #[inline]
    pub(super) fn parse(
        args: &Args<'_>,
        expiry: Option<(Arg<'_>, Arg<'_>)>,
        jitter: Option<Arg<'_>>,
        grace: Option<Arg<'_>>,
    ) -> Result<Age, Error> {
        if expiry.is_none() && (jitter.is_some() || grace.is_some()) {
            return Err(Error::Syntax);
        }
        let seconds = expiry.is_some_and(|(unit, _)| in_seconds(unit));
        Ok(Age {
            expiry: expiry.map(|(unit, amount)| in_range(args, parse_expiry(unit, amount, seconds)?)).transpose()?,
            jitter: jitter.map(|arg| in_range(args, parse_jitter(arg, seconds)?)).transpose()?,
            grace: grace.map(|arg| in_range(args, parse_amount(arg, seconds)?)).transpose()?,
        })
    }
}

/// Is this word of an expiry one for seconds?
pub(super) fn in_seconds(unit: Arg<'_>) -> bool {
    unit.is("EX") || unit.is("EXAT")
}

/// A tag of 1 to 512 bytes.
pub fn checked_tag(tag: Arg<'_>) -> Result<Arg<'_>, Error> {
    if (1..=MAX_TAG_LENGTH).contains(&tag.bytes.len()) { Ok(tag) } else { Err(Error::TagLength) }
}

/// Checks tags and keeps each once. At most 64 are distinct, so the scan is bounded.
pub fn distinct_tags<'a>(tags: impl Iterator<Item = Arg<'a>>) -> Result<TagList<'a>, Error> {
    let mut distinct = TagList::new();
    for tag in tags {
        let tag = checked_tag(tag)?;
        if distinct.iter().any(|seen| seen.bytes == tag.bytes) {
            continue;
        }
        if distinct.len() == MAX_TAGS {
            return Err(Error::TagCount);
        }
        distinct.push(tag);
    }
    Ok(distinct)
}

/// 0 to 2^63 - 1.
pub fn parse_version(arg: Arg<'_>) -> Result<u64, Error> {
    u64::try_from(arg.int()?).map_err(|_| Error::VersionRange)
}

fn counted_tags<'a>(args: &mut Args<'a>) -> Result<TagList<'a>, Error> {
    let count = args.value()?.int()?;
    if count < 1 {
        return Err(Error::TagCount);
    }
    distinct_tags(args.list(usize::try_from(count).map_err(|_| Error::Syntax)?)?)
}

/// What is too great in milliseconds, or an expiry that is not above 0, is an invalid expiry of the command.
pub(super) fn in_range<T>(args: &Args<'_>, amount: Option<T>) -> Result<T, Error> {
    amount.ok_or(Error::InvalidExpire(args.command()))
}

/// `None` if the amount is not above 0 or too great in milliseconds.
#[inline]
pub(super) fn parse_expiry(unit: Arg<'_>, amount: Arg<'_>, seconds: bool) -> Result<Option<Expiry>, Error> {
    let Some(ms) = milliseconds(amount.int()?, seconds).filter(|&ms| ms > 0) else { return Ok(None) };
    let absolute = unit.is("EXAT") || unit.is("PXAT");
    Ok(Some(if absolute { Expiry::At(ms) } else { Expiry::In(ms) }))
}

/// `None` if the amount is too great in milliseconds.
fn parse_jitter(arg: Arg<'_>, seconds: bool) -> Result<Option<Jitter>, Error> {
    if arg.bytes.last() == Some(&b'%') {
        return Ok(Some(Jitter::Percent(parse_percent(arg.bytes, "JITTER")?)));
    }
    Ok(parse_amount(arg, seconds)?.map(Jitter::Ms))
}

/// `10%`: 0 to 100, and the sign.
pub(super) fn parse_percent(text: &[u8], option: &'static str) -> Result<i64, Error> {
    let percent = text.strip_suffix(b"%").and_then(parse_int);
    percent.filter(|percent| (0..=100).contains(percent)).ok_or(Error::Percent(option))
}

/// 0 and more. `None` if it is too great in milliseconds.
fn parse_amount(arg: Arg<'_>, seconds: bool) -> Result<Option<i64>, Error> {
    let amount = arg.int()?;
    if amount < 0 { Err(Error::NotAnInteger) } else { Ok(milliseconds(amount, seconds)) }
}

fn milliseconds(amount: i64, seconds: bool) -> Option<i64> {
    if seconds { amount.checked_mul(1000) } else { Some(amount) }
}

/// Rounded down; cannot overflow on the way for percentages up to 100.
pub(super) fn percent_of(ms: i64, percent: i64) -> Option<i64> {
    i64::try_from(i128::from(ms).checked_mul(i128::from(percent))?.checked_div(100)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_000_000);

    fn with<T>(line: &str, look: impl FnOnce(Result<WriteOptions<'_>, Error>) -> T) -> T {
        let words: Vec<&[u8]> =
            std::iter::once(&b"cmd"[..]).chain(line.split_whitespace().map(str::as_bytes)).collect();
        let mut args = Args::new(&words, "cmd");
        look(WriteOptions::parse(&mut args))
    }

    fn error(line: &str) -> Error {
        with(line, |options| options.expect_err("an error"))
    }

    fn expires(line: &str) -> Result<Option<(i64, u64)>, Error> {
        with(line, |options| Ok(options?.expires(NOW, "cmd")?.map(|e| (e.at.0, e.jitter))))
    }

    #[test]
    fn every_form_of_expiry_becomes_a_moment() {
        assert_eq!(expires("").unwrap(), None);
        assert_eq!(expires("ex 2").unwrap(), Some((1_002_000, 0)));
        assert_eq!(expires("PX 2").unwrap(), Some((1_000_002, 0)));
        assert_eq!(expires("EXAT 5").unwrap(), Some((5_000, 0)));
        assert_eq!(expires("PxAt 5").unwrap(), Some((5, 0)));
    }

    #[test]
    fn jitter_is_in_the_unit_of_the_expiry_or_a_part_of_the_ttl() {
        assert_eq!(expires("EX 10 JITTER 3").unwrap(), Some((1_010_000, 3000)));
        assert_eq!(expires("JITTER 3 PX 10").unwrap(), Some((1_000_010, 3)));
        assert_eq!(expires("EXAT 1001 JITTER 2").unwrap(), Some((1_001_000, 2000)));
        assert_eq!(expires("EX 10 JITTER 10%").unwrap(), Some((1_010_000, 1000)));
        assert_eq!(expires("PXAT 1000200 JITTER 50%").unwrap(), Some((1_000_200, 100)));
        assert_eq!(expires("PXAT 5 JITTER 50%").unwrap(), Some((5, 0)), "nothing is left of this TTL");
        assert_eq!(expires("PX 10 JITTER 0").unwrap(), Some((1_000_010, 0)));
        assert_eq!(expires("PX 10 JITTER 100%").unwrap(), Some((1_000_010, 10)));
    }

    #[test]
    fn an_expiry_must_lie_ahead_and_in_range() {
        for line in [
            "EX 0",
            "PX 0",
            "EXAT 0",
            "PXAT -1",
            "EX -1",
            "EX 9223372036854775807",
            "EX 9223372036854776",
            "EXAT 9223372036854775807",
            "EX 1 JITTER 9223372036854776",
        ] {
            assert_eq!(error(line), Error::InvalidExpire("cmd"), "{line}");
        }
        for line in ["PX 9223372036854775807", "PX 9223372036853775807 JITTER 1", "PXAT 9223372036854775807 JITTER 1"] {
            assert_eq!(expires(line), Err(Error::InvalidExpire("cmd")), "{line}");
        }
        assert_eq!(error("EX x"), Error::NotAnInteger);
        assert_eq!(error("EX 1 JITTER -1"), Error::NotAnInteger);
        assert_eq!(error("EX 1 JITTER 1.5"), Error::NotAnInteger);
        for line in ["EX 1 JITTER 101%", "EX 1 JITTER -1%", "EX 1 JITTER %", "EX 1 JITTER 5%%"] {
            assert_eq!(error(line), Error::Percent("JITTER"), "{line}");
        }
    }

    #[test]
    fn unknown_repeated_conflicting_and_cut_options_are_syntax_errors() {
        for line in [
            "FOO",
            "EX",
            "EX 1 EX 1",
            "EX 1 PXAT 1",
            "NX NX",
            "NX XX",
            "JITTER 1",
            "JITTER 1 NX",
            "EX 1 JITTER",
            "EX 1 JITTER 1 JITTER 1",
            "TAGS",
            "TAGS 1",
            "TAGS 2 a",
            "TAGS 1 a TAGS 1 b",
            "TAGS 9223372036854775807 a",
            "TAGS 1 a b",
            "VERSION",
            "VERSION 1 VERSION 2",
            "GRACE 5",
            "EX 1 GRACE",
            "EX 1 GRACE 5 GRACE 5",
            "POLICY",
            "POLICY p POLICY q",
            "EX 0 FOO",
        ] {
            assert_eq!(error(line), Error::Syntax, "{line}");
        }
    }

    #[test]
    fn tags_are_counted_and_may_look_like_options() {
        with("TAGS 3 EX nx EX VERSION 7 PX 1", |options| {
            let options = options.unwrap();
            let tags: Vec<_> = options.tags.iter().map(|t| t.bytes).collect();
            assert_eq!(tags, [&b"EX"[..], b"nx"]);
            assert_eq!((options.version, options.expiry), (Some(7), Some(Expiry::In(1))));
        });
        assert_eq!(error("TAGS 0"), Error::TagCount);
        assert_eq!(error("TAGS -1 a"), Error::TagCount);
        assert_eq!(error("TAGS x a"), Error::NotAnInteger);
        let numbered = |n: usize| (0..n).map(|i| format!("t{i}")).collect::<Vec<_>>().join(" ");
        with(&format!("TAGS 65 {} t0", numbered(64)), |options| assert_eq!(options.unwrap().tags.len(), 64));
        assert_eq!(error(&format!("TAGS 65 {}", numbered(65))), Error::TagCount);
        with(&format!("TAGS 1 {}", "x".repeat(512)), |options| assert!(options.is_ok()));
        assert_eq!(error(&format!("TAGS 1 {}", "x".repeat(513))), Error::TagLength);
        let empty: [&[u8]; 4] = [b"cmd", b"TAGS", b"1", b""];
        assert_eq!(WriteOptions::parse(&mut Args::new(&empty, "cmd")).unwrap_err(), Error::TagLength);
    }

    #[test]
    fn versions_are_not_negative() {
        with("VERSION 9223372036854775807", |options| assert_eq!(options.unwrap().version, Some(i64::MAX as u64)));
        with("VERSION 0", |options| assert_eq!(options.unwrap().version, Some(0)));
        assert_eq!(error("VERSION -1"), Error::VersionRange);
        assert_eq!(error("VERSION 9223372036854775808"), Error::NotAnInteger);
    }
}
