//! What becomes of a question: the answer, and what it changes. No server, no clock: the moment is passed in.

use smallvec::SmallVec;

use crate::clock::{UnixMs, UnixUs};
use crate::error::Error;
use crate::ratelimit::answer::{Answer, Verdict, judge, scarcest};
use crate::ratelimit::effects::Effect;
use crate::ratelimit::limit::Limit;
use crate::ratelimit::limiter::Limiter;
use crate::ratelimit::meter::Meter;
use crate::ratelimit::reading::Reading;

pub type Meters = SmallVec<[Meter; 1]>;
pub type Readings<'a> = SmallVec<[Reading<'a>; 1]>;

pub struct Decision {
    pub answer: Answer,
    /// What was changed; `None` leaves no trace, here or elsewhere.
    pub effect: Option<Effect>,
    /// The key's new expiry, if it changes.
    pub expiry: Option<UnixMs>,
}

pub fn meters(limits: &[Limit]) -> Meters {
    limits.iter().map(|limit| limit.meter).collect()
}

pub fn readings<'a>(limiter: &'a Limiter, limits: &[Limit], now: UnixUs) -> Readings<'a> {
    limits.iter().map(|limit| limiter.reading(limit.meter, now)).collect()
}

/// How the limits stand, and whether this cost would pass. Changes nothing.
pub fn look(limiter: &Limiter, limits: &[Limit], cost: i64, now: UnixUs) -> Answer {
    let readings = readings(limiter, limits, now);
    let verdict = judge(limits, &readings, cost);
    answer(limiter, limits, &readings, verdict, now)
}

fn answer(limiter: &Limiter, limits: &[Limit], readings: &[Reading<'_>], verdict: Verdict, now: UnixUs) -> Answer {
    let answer_of = |index| Answer::of(limits, readings, index).unwrap_or(Answer::NONE);
    if let Some(until) = limiter.banned_until(now.to_ms()) {
        return answer_of(scarcest(limits, readings)).banned(until, now.to_ms());
    }
    match verdict {
        Verdict::Admitted => answer_of(scarcest(limits, readings)),
        Verdict::Denied { index, retry_after_ms } => answer_of(index).denied(retry_after_ms),
    }
}

/// Admits the cost and charges it, if all limits allow it.
///
/// # Errors
/// `TooManyLimits` if the key has no room for another state.
pub fn check(limiter: &mut Limiter, limits: &[Limit], cost: i64, now: UnixUs) -> Result<Decision, Error> {
    let readings_before = readings(limiter, limits, now);
    let verdict = judge(limits, &readings_before, cost);
    let is_banned = limiter.banned_until(now.to_ms()).is_some();
    if verdict == Verdict::Admitted && !is_banned {
        drop(readings_before);
        let effect = Effect::Charge { meters: meters(limits), now, units: cost };
        let expiry = effect.apply_to(limiter)?;
        let readings = readings(limiter, limits, now);
        let answer = answer(limiter, limits, &readings, Verdict::Admitted, now);
        return Ok(Decision { answer, effect: Some(effect), expiry });
    }
    let answer = answer(limiter, limits, &readings_before, verdict, now);
    drop(readings_before);
    // The one denial that changes something: if it did not, nothing but an admission would tell the state of the new
    // clock, and denials would last until the old one is reached again.
    let meters = meters(limits);
    if limiter.is_ahead_of(&meters, now) {
        let effect = Effect::SetBack { meters, now };
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
