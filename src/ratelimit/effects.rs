//! What of this family is replicated by KEYWARD.APPLY: an admission as an absolute booking, `CHARGE key SLIDING window_ms now_us
//! units`, and `SETBACK key SLIDING window_ms now_us` for a clock that was found set back by a check that was denied.
//!
//! Primary and replica change a limiter through [`Effect::apply_to`] alone, so that they cannot differ. The key's expiry
//! follows from the state and is not sent.

use crate::args::{Arg, Args};
use crate::clock::{UnixMs, UnixUs};
use crate::error::Error;
use crate::ratelimit::limiter::Limiter;
use crate::ratelimit::sliding_window::Window;
use crate::server::{Server, Word};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Charge { window: Window, now: UnixUs, units: i64 },
    SetBack { window: Window, now: UnixUs },
}

impl Effect {
    /// Changes the limiter; the key's new expiry, if it is another one now. An error changes nothing.
    pub fn apply_to(self, limiter: &mut Limiter) -> Result<Option<UnixMs>, Error> {
        let before = limiter.expiry();
        match self {
            Effect::Charge { window, now, units } => limiter.charge(window, now, units)?,
            Effect::SetBack { window, now } => limiter.set_back(window, now),
        }
        let after = limiter.expiry();
        Ok((after != before).then_some(after))
    }

    pub fn replicate<S: Server>(self, key: Arg<'_>, server: &mut S) {
        match self {
            Effect::Charge { window, now, units } => server.replicate(
                "KEYWARD.APPLY",
                &[
                    Word::Text("CHARGE"),
                    Word::Arg(key),
                    Word::Text("SLIDING"),
                    Word::Int(window.ms()),
                    Word::Int(now.0),
                    Word::Int(units),
                ],
            ),
            Effect::SetBack { window, now } => server.replicate(
                "KEYWARD.APPLY",
                &[
                    Word::Text("SETBACK"),
                    Word::Arg(key),
                    Word::Text("SLIDING"),
                    Word::Int(window.ms()),
                    Word::Int(now.0),
                ],
            ),
        }
    }
}

/// Applies `effect` if it is one of this family's; `None` if it is not.
pub fn apply<S: Server>(effect: Arg<'_>, args: &mut Args<'_>, server: &mut S) -> Option<Result<(), Error>> {
    if effect.is("CHARGE") {
        Some(parse(args, true).and_then(|(key, effect)| apply_to_key(effect, key, server)))
    } else if effect.is("SETBACK") {
        Some(parse(args, false).and_then(|(key, effect)| apply_to_key(effect, key, server)))
    } else {
        None
    }
}

fn parse<'a>(args: &mut Args<'a>, charge: bool) -> Result<(Arg<'a>, Effect), Error> {
    let mut word = || args.take().ok_or(Error::BadEffect);
    let key = word()?;
    if !word()?.is("SLIDING") {
        return Err(Error::BadEffect);
    }
    let mut number = || word()?.int().map_err(|_| Error::BadEffect);
    let window = Window::from_ms(number()?).ok_or(Error::BadEffect)?;
    let now = UnixUs(number()?);
    let effect =
        if charge { Effect::Charge { window, now, units: number()? } } else { Effect::SetBack { window, now } };
    args.end().map_err(|_| Error::BadEffect)?;
    Ok((key, effect))
}

fn apply_to_key<S: Server>(effect: Effect, key: Arg<'_>, server: &mut S) -> Result<(), Error> {
    let expiry = match (server.native::<Limiter>(key)?, effect) {
        (Some(limiter), _) => effect.apply_to(limiter)?,
        (None, Effect::Charge { .. }) => {
            let mut limiter = Limiter::default();
            let expiry = effect.apply_to(&mut limiter)?;
            server.put_native(key, limiter, expiry);
            return Ok(());
        }
        (None, Effect::SetBack { .. }) => return Err(Error::BadEffect),
    };
    server.changed(key);
    if expiry.is_some() {
        server.set_expiry(key, expiry);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::apply::Apply;
    use crate::error::Error;
    use crate::fake_server::FakeServer;
    use crate::reply::Reply;

    /// All that an operator, a broken link or a forged file may send.
    #[test]
    fn malformed_effects_are_refused_and_change_nothing() {
        let mut server = FakeServer::new();
        server.put_string("s", "v");
        for effect in [
            "CHARGE",
            "CHARGE k",
            "CHARGE k SLIDING 1000 1",
            "CHARGE k FIXED 1000 1 1",
            "CHARGE k SLIDING 1000 1 1 1",
            "CHARGE k SLIDING 0 1 1",
            "CHARGE k SLIDING 1000000000001 1 1",
            "CHARGE k SLIDING 1000 9223372036854775808 1",
            "CHARGE k SLIDING 1000 1 0",
            "CHARGE k SLIDING 1000 1 -1",
            "CHARGE k SLIDING 1000 1 1000000000001",
            "CHARGE k SLIDING x 1 1",
            "SETBACK k SLIDING 1000 1",
            "SETBACK k SLIDING 1000 1 1",
        ] {
            assert_eq!(server.call::<Apply>(&format!("KEYWARD.APPLY {effect}")), Err(Error::BadEffect), "{effect}");
        }
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY CHARGE s SLIDING 1000 1 1"), Err(Error::WrongType));
        assert_eq!(server.keys.len(), 1);
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn charges_beyond_what_any_limit_allows_are_refused() {
        let mut server = FakeServer::new();
        server.replayed = true;
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY CHARGE k SLIDING 1000 7 1000000000000"), Ok(Reply::Ok));
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY CHARGE k SLIDING 1000 9 1"), Err(Error::BadEffect));
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY SETBACK k SLIDING 1000 0"), Ok(Reply::Ok));
    }
}
