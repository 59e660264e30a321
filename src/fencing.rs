//! Fencing tokens: each is larger than every one granted before on this server, for whatever it was.
//!
//! A token is the clock in microseconds or one more than the last token, whichever is larger, so that a clock set back does
//! no harm. What a crash or a failover could lose is the knowledge of the last token. So a reserve is made known ahead of
//! the grants: a number that no token has reached yet. A server that starts, or is promoted, goes on above the reserve. This
//! can fail only if the reserve itself was lost with the grants that followed it (five seconds of grants, or the first ones
//! after a pause), and the new clock is behind as well.

use crate::args::{Arg, Args};
use crate::clock::UnixUs;
use crate::error::Error;
use crate::server::{Server, Word};

/// Tokens stay below this, the bound of exact integers in a double: clients in JavaScript and Lua can hold them. The clock
/// gets there in the year 2255.
pub const TOKEN_END: i64 = 1 << 53;

/// How far the reserve is ahead of the grants, in microseconds.
const AHEAD_US: i64 = 10_000_000;

/// How far ahead of the clock a token from outside may be to be believed, in microseconds: a day.
const PLAUSIBLE_US: i64 = 86_400_000_000;

/// Is this a number that a token can have?
pub fn is_token(number: i64) -> bool {
    (1..TOKEN_END).contains(&number)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    pub token: i64,
    /// The reserve to be made known before this token is used, when half of the old one is used up.
    pub reserve: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fencing {
    last: i64,
    reserve: i64,
}

impl Fencing {
    /// The next token; `None` when no number is left below [`TOKEN_END`].
    pub fn grant(&mut self, now: UnixUs) -> Option<Granted> {
        let token = self.peek(now);
        if !is_token(token) {
            return None;
        }
        self.last = token;
        let needed = token.saturating_add(AHEAD_US / 2).min(TOKEN_END.saturating_sub(1));
        let reserve = (self.reserve < needed).then(|| {
            self.reserve = token.saturating_add(AHEAD_US).min(TOKEN_END.saturating_sub(1));
            self.reserve
        });
        Some(Granted { token, reserve })
    }

    /// The token that would be granted now.
    pub fn peek(&self, now: UnixUs) -> i64 {
        self.last.saturating_add(1).max(now.0)
    }

    /// A token granted by the primary, or before the file was written.
    pub fn saw(&mut self, token: i64) {
        self.last = self.last.max(token);
    }

    /// A token in a value that anybody may have made up (RESTORE). One that is far ahead of the clock is not followed: a
    /// forged one could use up all that are left. What this server granted itself is below its reserve, whatever the clock.
    pub fn saw_in_value(&mut self, token: i64, now: UnixUs) {
        if token <= now.0.saturating_add(PLAUSIBLE_US) {
            self.saw(token);
        }
    }

    /// A reserve made known by the primary, or by the file that is loaded.
    pub fn raise_reserve(&mut self, reserve: i64) {
        self.reserve = self.reserve.max(reserve);
    }

    /// This server may grant tokens from now on: after a load or a promotion. Whoever granted before may have used the
    /// reserve up to its end.
    pub fn resume(&mut self) {
        self.last = self.last.max(self.reserve);
    }

    /// Takes in what a file carries. `None`: the bytes are no reserve.
    pub fn load(&mut self, bytes: &[u8]) -> Option<()> {
        let reserve = i64::from_le_bytes(bytes.try_into().ok()?);
        (0..TOKEN_END).contains(&reserve).then(|| self.raise_reserve(reserve))
    }

    /// What a file must carry so that tokens go on growing after it is loaded; 0 before the first token.
    pub fn saved(&self) -> i64 {
        self.last.max(self.reserve)
    }
}

/// A new token. The reserve goes ahead of it: `KEYWARD.APPLY RESERVE number`, no token reaches this number before a new reserve
/// is sent.
///
/// # Errors
/// `NoTokenLeft`, in the year 2255.
pub fn next_token<S: Server>(server: &mut S) -> Result<i64, Error> {
    let now = server.now();
    let granted = server.state().fencing.grant(now).ok_or(Error::NoTokenLeft)?;
    if let Some(reserve) = granted.reserve {
        server.replicate("KEYWARD.APPLY", &[Word::Text("RESERVE"), Word::Int(reserve)]);
    }
    Ok(granted.token)
}

/// Applies `effect` if it is a reserve; `None` if it is not.
pub fn apply<S: Server>(effect: Arg<'_>, args: &mut Args<'_>, server: &mut S) -> Option<Result<(), Error>> {
    effect.is("RESERVE").then(|| {
        let reserve = args.take().ok_or(Error::BadEffect)?.int().map_err(|_| Error::BadEffect)?;
        args.end().map_err(|_| Error::BadEffect)?;
        if !is_token(reserve) {
            return Err(Error::BadEffect);
        }
        server.state().fencing.raise_reserve(reserve);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(fencing: &mut Fencing, now: i64) -> i64 {
        fencing.grant(UnixUs(now)).unwrap().token
    }

    #[test]
    fn tokens_follow_the_clock_and_grow_when_it_stands_still_or_is_set_back() {
        let mut fencing = Fencing::default();
        assert_eq!(token(&mut fencing, 5_000), 5_000);
        assert_eq!(token(&mut fencing, 5_000), 5_001);
        assert_eq!(token(&mut fencing, 10), 5_002);
        assert_eq!(token(&mut fencing, 9_000), 9_000);
    }

    #[test]
    fn the_reserve_is_raised_before_half_of_it_is_used() {
        let mut fencing = Fencing::default();
        assert_eq!(fencing.grant(UnixUs(1_000_000)).unwrap().reserve, Some(11_000_000));
        assert_eq!(fencing.grant(UnixUs(6_000_000)).unwrap().reserve, None);
        assert_eq!(fencing.grant(UnixUs(6_000_001)).unwrap().reserve, Some(16_000_001));
    }

    #[test]
    fn whoever_takes_over_starts_above_the_reserve_and_makes_a_new_one_known_first() {
        let mut primary = Fencing::default();
        let reserve = primary.grant(UnixUs(1_000_000)).unwrap().reserve.unwrap();
        token(&mut primary, 4_000_000);

        let mut replica = Fencing::default();
        replica.raise_reserve(reserve);
        replica.resume();
        let first = replica.grant(UnixUs(0)).unwrap();
        assert_eq!(first.token, reserve + 1);
        assert!(first.reserve.unwrap() > first.token);
    }

    #[test]
    fn a_forged_token_does_not_use_up_the_others() {
        let mut fencing = Fencing::default();
        fencing.saw_in_value(TOKEN_END - 1, UnixUs(5_000));
        assert_eq!(token(&mut fencing, 5_000), 5_000);
        fencing.saw_in_value(60_000_000, UnixUs(5_000));
        assert_eq!(token(&mut fencing, 5_000), 60_000_001);
    }

    #[test]
    fn no_token_reaches_two_to_the_53() {
        let mut fencing = Fencing::default();
        fencing.saw(TOKEN_END - 2);
        assert_eq!(token(&mut fencing, 1), TOKEN_END - 1);
        assert_eq!(fencing.grant(UnixUs(1)), None);
        assert_eq!(fencing.grant(UnixUs(i64::MAX)), None);
        assert!(fencing.saved() < TOKEN_END);
    }
}
