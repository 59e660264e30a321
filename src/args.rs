//! A cursor over argv. It knows words, integers and counted lists; it knows nothing of Redis.

#![allow(
    clippy::unnecessary_lazy_evaluations,
    reason = "an error that is made for each argument has to be dropped as well"
)]

use crate::error::Error;

/// One argument. `position` lets the host find the server's own string object again, so that keys, values and
/// what is replicated are handed on without a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arg<'a> {
    pub bytes: &'a [u8],
    pub position: usize,
}

impl<'a> Arg<'a> {
    /// A name that is no argument of the running command, for work that a timer does.
    pub fn named(bytes: &'a [u8]) -> Arg<'a> {
        Arg { bytes, position: usize::MAX }
    }

    /// Is this the option word `word`, in any case? `word` is given in capitals.
    pub fn is(&self, word: &str) -> bool {
        self.bytes.eq_ignore_ascii_case(word.as_bytes())
    }

    /// The argument as Redis reads integers: decimal, no `+`, no spaces, no leading zeros.
    pub fn int(&self) -> Result<i64, Error> {
        parse_int(self.bytes).ok_or_else(|| Error::NotAnInteger)
    }

    /// The same, from `low` to `high`; `what` it is, for the error.
    pub fn int_within(&self, what: &'static str, low: i64, high: i64) -> Result<i64, Error> {
        let value = self.int()?;
        if (low..=high).contains(&value) { Ok(value) } else { Err(Error::CountRange(what, low, high)) }
    }
}

/// The arguments of one call, read from left to right. Position 0 is the command's name.
#[derive(Clone, Debug)]
pub struct Args<'a> {
    argv: &'a [&'a [u8]],
    next: usize,
    command: &'static str,
}

impl<'a> Args<'a> {
    /// `argv` with the command name at 0; `command` is its lower-case name for error texts.
    pub fn new(argv: &'a [&'a [u8]], command: &'static str) -> Args<'a> {
        Args { argv, next: 1, command }
    }

    pub fn command(&self) -> &'static str {
        self.command
    }

    /// `CACHE.POLICY SET`: the second word of the name is no argument.
    pub fn skip_subcommand(&mut self) {
        self.next = self.next.saturating_add(1);
    }

    /// How many arguments are left.
    pub fn left(&self) -> usize {
        self.argv.len().saturating_sub(self.next)
    }

    /// The next argument, which stays to be taken.
    pub fn peek(&self) -> Option<Arg<'a>> {
        self.argv.get(self.next).map(|bytes| Arg { bytes, position: self.next })
    }

    /// The next argument, if any.
    pub fn take(&mut self) -> Option<Arg<'a>> {
        let bytes = self.argv.get(self.next)?;
        let position = self.next;
        self.next = self.next.saturating_add(1);
        Some(Arg { bytes, position })
    }

    /// The next positional argument; its absence is a wrong number of arguments.
    pub fn required(&mut self) -> Result<Arg<'a>, Error> {
        self.take().ok_or_else(|| Error::WrongArity(self.command))
    }

    /// The argument of an option; its absence is a syntax error, as in SET.
    pub fn value(&mut self) -> Result<Arg<'a>, Error> {
        self.take().ok_or_else(|| Error::Syntax)
    }

    /// The next `n` arguments of a counted list; fewer are a syntax error.
    pub fn list(&mut self, n: usize) -> Result<impl Iterator<Item = Arg<'a>> + Clone + use<'a>, Error> {
        let end = self.next.checked_add(n).ok_or(Error::Syntax)?;
        let items = self.argv.get(self.next..end).ok_or(Error::Syntax)?;
        let start = self.next;
        self.next = end;
        Ok(items.iter().enumerate().map(move |(i, bytes)| Arg { bytes, position: start.saturating_add(i) }))
    }

    /// All that is left.
    pub fn rest(&mut self) -> impl Iterator<Item = Arg<'a>> + Clone + use<'a> {
        let start = self.next;
        self.next = self.argv.len();
        self.argv
            .get(start..)
            .unwrap_or_default()
            .iter()
            .enumerate()
            .map(move |(i, bytes)| Arg { bytes, position: start.saturating_add(i) })
    }

    /// Nothing may be left: an unknown word is a syntax error.
    pub fn end(&self) -> Result<(), Error> {
        if self.left() == 0 { Ok(()) } else { Err(Error::Syntax) }
    }
}

/// Redis's `string2ll`: an optional `-`, no leading zeros, no other character, in the range of i64.
pub fn parse_int(bytes: &[u8]) -> Option<i64> {
    let (negative, digits) = match bytes.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, bytes),
    };
    match digits {
        [] => return None,
        [b'0'] => return (!negative).then_some(0),
        [b'0', ..] => return None,
        _ => {}
    }
    let mut value: i64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        let digit = i64::from(digit.wrapping_sub(b'0'));
        value = value.checked_mul(10)?;
        value = if negative { value.checked_sub(digit)? } else { value.checked_add(digit)? };
    }
    Some(value)
}

/// Sets an option that may be given once; a second time is a syntax error.
pub fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), Error> {
    if slot.is_some() {
        return Err(Error::Syntax);
    }
    *slot = Some(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_follow_the_rules_of_redis() {
        for (text, value) in
            [("0", 0), ("7", 7), ("-1", -1), ("9223372036854775807", i64::MAX), ("-9223372036854775808", i64::MIN)]
        {
            assert_eq!(parse_int(text.as_bytes()), Some(value), "{text}");
        }
        for text in [
            "",
            "-",
            "+1",
            " 1",
            "1 ",
            "01",
            "-0",
            "00",
            "1.0",
            "9223372036854775808",
            "-9223372036854775809",
            "1a",
            "\0",
        ] {
            assert_eq!(parse_int(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_list_shorter_than_its_count_is_a_syntax_error() {
        let argv: [&[u8]; 3] = [b"cmd", b"a", b"b"];
        let mut args = Args::new(&argv, "cmd");
        assert!(args.list(3).is_err());
        assert!(args.list(usize::MAX).is_err());
        assert_eq!(args.list(2).unwrap().map(|a| a.position).collect::<Vec<_>>(), [1, 2]);
        assert!(args.end().is_ok());
    }
}
