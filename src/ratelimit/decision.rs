//! What becomes of a question: the answer, and what it changes. No server, no clock: the moment is passed in.

use smallvec::SmallVec;

use crate::clock::{UnixMs, UnixUs};
use crate::error::Error;
use crate::ratelimit::answer::{Answer, Denial, denial};
use crate::ratelimit::effects::Effect;
use crate::ratelimit::limit::Limit;
use crate::ratelimit::limiter::Limiter;
use crate::ratelimit::meter::Meter;

pub type Meters = SmallVec<[Meter; 1]>;

pub struct Decision {
    pub answer: Answer,
    /// What was changed; `None` leaves no trace, here or elsewhere.
    pub effect: Option<Effect>,
    /// The key's new expiry, if it changes.
    pub expiry: Option<UnixMs>,
}

#[inline(always)]
pub fn meters(limits: &[Limit]) -> Meters {
    match limits {
        // The usual case.
        [limit] => Meters::from_buf([limit.meter]),
        _ => limits.iter().map(|limit| limit.meter).collect(),
    }
}

/// How the limits stand, and whether this cost would pass. Changes nothing.
pub fn look(limiter: &Limiter, limits: &[Limit], cost: i64, now: UnixUs) -> Answer {
    answer(limiter, limits, denial(limiter, limits, cost, now), now)
}

fn answer(limiter: &Limiter, limits: &[Limit], denial: Option<Denial<'_>>, now: UnixUs) -> Answer {
    match (limiter.banned_until(now.to_ms()), denial) {
        (Some(until), _) => Answer::admitted(limiter, limits, now).banned(until, now.to_ms()),
        (None, Some(Denial { standing, retry_after_ms })) => standing.answer().denied(retry_after_ms),
        (None, None) => Answer::admitted(limiter, limits, now),
    }
}

/// Admits the cost and charges it, if all limits allow it.
///
/// # Errors
/// `TooManyLimits` if the key has no room for another state.
#[inline(always)]
pub fn check(limiter: &mut Limiter, limits: &[Limit], cost: i64, now: UnixUs) -> Result<Decision, Error> {
    let denial = denial(limiter, limits, cost, now);
    if denial.is_none() && limiter.banned_until(now.to_ms()).is_none() {
        let effect = Effect::Charge { meters: meters(limits), now, units: cost };
        let expiry = effect.apply_to(limiter)?;
        return Ok(Decision { answer: Answer::admitted(limiter, limits, now), effect: Some(effect), expiry });
    }
    let answer = answer(limiter, limits, denial, now);
    // The one denial that changes something: if it did not, nothing but an admission would tell the state of the new
    // clock, and denials would last until the old one is reached again.
    if limits.iter().any(|limit| limiter.is_ahead_of(limit.meter, now)) {
        let effect = Effect::SetBack { meters: meters(limits), now };
        let expiry = effect.apply_to(limiter)?;
        return Ok(Decision { answer, effect: Some(effect), expiry });
    }
    Ok(Decision { answer, effect: None, expiry: None })
}

/// Gives the cost back, and tells how the limits stand then.
pub fn refund(limiter: &mut Limiter, limits: &[Limit], cost: i64, now: UnixUs) -> Result<Decision, Error> {
    let consumed = limits.iter().any(|limit| limiter.reading(limit.meter, now).used() > 0);
    let (mut effect, mut expiry) = (None, None);
    if consumed {
        let refund = Effect::Refund { meters: meters(limits), now, units: cost };
        expiry = refund.apply_to(limiter)?;
        effect = Some(refund);
    }
    Ok(Decision { answer: look(limiter, limits, cost, now), effect, expiry })
}
