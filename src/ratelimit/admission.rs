//! CHECK at work: charging at once, or queueing for it.
//!
//! Who would have to wait longer than he wants to is denied at once, so a queue never holds anybody in vain. How long that is,
//! a [`Forecast`] tells: of everybody who waits for the key, kept while the queue moves as it says.

use std::cell::Cell;

use super::answer::Answer;
use super::decision;
use super::effects;
use super::forecast::Forecast;
use super::limit::{Limits, Question};
use super::limiter::Limiter;
use super::waiting::{self, Turn, Wanted};
use crate::args::Arg;
use crate::clock::UnixUs;
use crate::error::Error;
use crate::name::{Name, NameRef};
use crate::reply::Reply;
use crate::server::Server;

/// What a waiter wants of a limiter.
#[derive(Debug)]
pub struct Queued {
    limits: Limits,
    cost: i64,
    /// When he is to be admitted.
    forecast: Cell<UnixUs>,
}

impl Queued {
    pub fn cost(&self) -> i64 {
        self.cost
    }
}

/// How much later than foretold somebody may be admitted before a forecast is made anew, in microseconds: timers are late by a
/// millisecond or two.
const LATE_US: i64 = 20_000;

/// Admits and charges the request, queues it, or denies it. Nobody who waits is overtaken.
pub fn check<S: Server>(server: &mut S, question: &Question<'_>) -> Result<Reply<'static>, Error> {
    let &Question { key, ref limits, cost, .. } = question;
    waiting::serve(server, key);
    if waiting::len_of(server, key) > 0 {
        return check_behind(server, question);
    }
    let answer = admit(server, key, limits, cost, false)?;
    if answer.allowed {
        return Ok(answer.reply());
    }
    let now = server.now();
    let at = (answer.retry_after_ms > 0).then(|| now.plus_ms(answer.retry_after_ms));
    queue(server, question, at, answer).map(|queued| queued.unwrap_or_else(|| answer.reply()))
}

/// Others wait for this limiter.
fn check_behind<S: Server>(server: &mut S, question: &Question<'_>) -> Result<Reply<'static>, Error> {
    let &Question { key, ref limits, cost, .. } = question;
    let now = server.now();
    let mut forecast = forecast(server, key)?;
    let at = forecast.admission(limits, cost, now);
    let answer = match server.native::<Limiter>(key)? {
        Some(limiter) => decision::look(limiter, limits, cost, now),
        None => decision::look(&Limiter::default(), limits, cost, now),
    };
    let wait_ms = at.map(|at| at.to_ms_up().since(now.to_ms()).max(1));
    let answer = answer.denied(wait_ms);
    let queued = queue(server, question, at, answer)?;
    if let (Some(_), Some(at)) = (&queued, at) {
        forecast.add(limits, cost, at);
    }
    let name = Name { db: server.db(), key: key.bytes.into() };
    server.state().ratelimit.forecasts.insert(name, forecast);
    Ok(queued.unwrap_or_else(|| answer.reply()))
}

/// Holds the caller if he wants to wait for as long as it takes, which is until `at`. `None`: he does not, or cannot.
fn queue<S: Server>(
    server: &mut S,
    question: &Question<'_>,
    at: Option<UnixUs>,
    denial: Answer,
) -> Result<Option<Reply<'static>>, Error> {
    let now = server.now();
    if let (Some(wait_ms), Some(at)) = (question.wait_ms, at)
        && (wait_ms == 0 || at <= now.plus_ms(wait_ms))
    {
        let queued = Queued { limits: question.limits.clone(), cost: question.cost, forecast: Cell::new(at) };
        let later = waiting::wait(server, question.key, Wanted::Check(queued), wait_ms, denial.reply())?;
        if later.is_some() {
            return Ok(later);
        }
    }
    let denied = &mut server.state().ratelimit.denied;
    *denied = denied.saturating_add(1);
    Ok(None)
}

/// The turn of one who waits has come: nobody is before him.
pub(super) fn turn<S: Server>(server: &mut S, key: Arg<'_>, queued: &Queued) -> Result<Turn, Error> {
    let Queued { limits, cost, forecast } = queued;
    let (db, was_there) = (server.db(), server.exists(key.bytes));
    // After the look at the key: one that has expired did so before this moment, and is full.
    let now = server.now();
    let answer = admit(server, key, limits, *cost, was_there)?;
    if !answer.allowed {
        let at = if answer.retry_after_ms > 0 { now.plus_ms(answer.retry_after_ms) } else { UnixUs(i64::MAX) };
        return Ok(Turn::Later(at.to_ms_up()));
    }
    let is_late = now.0.saturating_sub(forecast.get().0) > LATE_US;
    let base = server.native::<Limiter>(key)?.cloned().unwrap_or_default();
    let forecasts = &mut server.state().ratelimit.forecasts;
    if is_late {
        forecasts.remove(&NameRef { db, key: key.bytes });
    } else if let Some(kept) = forecasts.get_mut(&NameRef { db, key: key.bytes }) {
        kept.base = base;
    }
    Ok(Turn::Answered(answer.reply()))
}

/// Admits and charges a request if its limits allow it, whoever waits. If the key `was_there` and is not any more, it has expired
/// since the moment of the call, at which it was not full: it is denied then, for a millisecond.
#[inline(always)]
fn admit<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    limits: &Limits,
    cost: i64,
    was_there: bool,
) -> Result<Answer, Error> {
    let now = server.now();
    let mut new = None;
    let limiter = match server.native::<Limiter>(key)? {
        Some(limiter) => limiter,
        None if was_there => return Ok(decision::look(&Limiter::default(), limits, cost, now).denied(Some(1))),
        None => new.insert(Limiter::default()),
    };
    let decision = decision::check(limiter, limits, cost, now)?;
    if let Some(effect) = &decision.effect {
        match new {
            None => effects::changed(server, key, false, decision.expiry),
            Some(_) if server.memory_full(key) => return Err(Error::OutOfMemory),
            Some(limiter) => server.put_native(key, limiter, decision.expiry),
        }
        effect.replicate(key, server);
    }
    let allowed = &mut server.state().ratelimit.allowed;
    *allowed = allowed.saturating_add(u64::from(decision.answer.allowed));
    Ok(decision.answer)
}

/// What is foretold of those who wait. What was kept holds if the limiter is as it was then; who left since makes it
/// too late by what he would have been charged, which the next one who is admitted too early puts right.
fn forecast<S: Server>(server: &mut S, key: Arg<'_>) -> Result<Forecast, Error> {
    let (db, now) = (server.db(), server.now());
    let kept = server.state().ratelimit.forecasts.remove(&NameRef { db, key: key.bytes });
    let limiter = server.native::<Limiter>(key)?;
    if let Some(kept) = kept
        && limiter.as_ref().map_or(kept.base.is_empty(), |limiter| **limiter == kept.base)
    {
        return Ok(kept);
    }
    let mut forecast = Forecast::new(limiter.cloned().unwrap_or_default(), now);
    for request in server.state().ratelimit.queues.waiters(db, key.bytes) {
        let Wanted::Check(Queued { limits, cost, forecast: foretold }) = &request.wanted else { continue };
        if let Some(at) = forecast.admission(limits, *cost, now) {
            forecast.add(limits, *cost, at);
            foretold.set(at);
        }
    }
    Ok(forecast)
}
