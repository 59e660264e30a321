//! What of this family is replicated by KEYWARD.APPLY: an admission as an absolute booking, `CHARGE key SLIDING window_ms tick
//! units`, and `SETBACK key SLIDING window_ms tick` for a clock that was found set back by a check that was denied.
//!
//! Primary and replica change a limiter through [`Effect::apply_to`] alone, so that they cannot differ. The key's expiry
//! follows from the state and is not sent.

use crate::args::{Arg, Args};
use crate::clock::UnixMs;
use crate::error::Error;
use crate::ratelimit::limiter::Limiter;
use crate::ratelimit::sliding_window::Window;
use crate::server::{Server, Word};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Charge { window: Window, tick: i64, units: i64 },
    SetBack { window: Window, tick: i64 },
}

impl Effect {
    /// Changes the limiter; the key's new expiry, if it is another one now. An error changes nothing.
    pub fn apply_to(self, limiter: &mut Limiter) -> Result<Option<UnixMs>, Error> {
        let before = limiter.expiry();
        match self {
            Effect::Charge { window, tick, units } => limiter.charge(window, tick, units)?,
            Effect::SetBack { window, tick } => limiter.set_back(window, tick)?,
        }
        let after = limiter.expiry();
        Ok((after != before).then_some(after))
    }

    pub fn replicate<S: Server>(self, key: Arg<'_>, server: &mut S) {
        match self {
            Effect::Charge { window, tick, units } => server.replicate(
                "KEYWARD.APPLY",
                &[
                    Word::Text("CHARGE"),
                    Word::Arg(key),
                    Word::Text("SLIDING"),
                    Word::Int(window.ms()),
                    Word::Int(tick),
                    Word::Int(units),
                ],
            ),
            Effect::SetBack { window, tick } => server.replicate(
                "KEYWARD.APPLY",
                &[
                    Word::Text("SETBACK"),
                    Word::Arg(key),
                    Word::Text("SLIDING"),
                    Word::Int(window.ms()),
                    Word::Int(tick),
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
    let tick = number()?;
    let effect =
        if charge { Effect::Charge { window, tick, units: number()? } } else { Effect::SetBack { window, tick } };
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
