//! `RATELIMIT.CHECK key [SLIDING] count EX s|PX ms [COST n]`

use crate::args::Args;
use crate::clock::{UnixMs, UnixUs};
use crate::commands::Command;
use crate::error::Error;
use crate::ratelimit::answer::Answer;
use crate::ratelimit::effects::Effect;
use crate::ratelimit::limit::Question;
use crate::ratelimit::limiter::Limiter;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, CommandSpec, Family, Flag, Keys};

pub struct Check;

impl Command for Check {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "ratelimit.check",
        family: Family::RateLimit,
        summary: "Admits a request if the limit allows it, and charges it.",
        complexity: "O(1); up to O(257) when a cost above 1 is denied.",
        since: "0.1.0",
        arity: -5,
        // Not deny-oom: only a key that is not there yet needs memory, and run looks for that.
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::First,
        access: Access::Update,
        tips: &["nondeterministic_output"],
        args: Question::SPEC,
    };
    type Request<'a> = Question<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Question<'a>, Error> {
        Question::parse(args)
    }

    fn run<'s, S: Server>(request: Question<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let key = request.key;
        let now = server.now();
        let decision = match server.native::<Limiter>(key)? {
            Some(limiter) => {
                let decision = decide(limiter, &request, now)?;
                if decision.effect.is_some() {
                    server.changed(key);
                }
                if decision.expiry.is_some() {
                    server.set_expiry(key, decision.expiry);
                }
                decision
            }
            None => {
                let mut limiter = Limiter::default();
                let decision = decide(&mut limiter, &request, now)?;
                if decision.effect.is_some() {
                    if server.memory_full() {
                        return Err(Error::OutOfMemory);
                    }
                    server.put_native(key, limiter, decision.expiry);
                }
                decision
            }
        };
        if let Some(effect) = decision.effect {
            effect.replicate(key, server);
        }
        let counters = &mut server.state().ratelimit;
        let counter = if decision.answer.allowed { &mut counters.allowed } else { &mut counters.denied };
        *counter = counter.saturating_add(1);
        Ok(decision.answer.reply())
    }
}

struct Decision {
    answer: Answer,
    /// What was changed; `None` leaves no trace, here or elsewhere.
    effect: Option<Effect>,
    /// The key's new expiry, if it changes.
    expiry: Option<UnixMs>,
}

fn decide(limiter: &mut Limiter, request: &Question<'_>, now: UnixUs) -> Result<Decision, Error> {
    let Question { limit, cost, .. } = *request;
    let window = limit.window;
    let tick = window.tick_at(now);
    let reading = limiter.reading(window, now);
    if limit.admits(reading.used(), cost) {
        let effect = Effect::Charge { window, tick, units: cost };
        let expiry = effect.apply_to(limiter)?;
        let answer = Answer::of(&limiter.reading(window, now), limit, 0);
        return Ok(Decision { answer, effect: Some(effect), expiry });
    }
    let answer = Answer::of(&reading, limit, cost);
    // The one denial that changes something: if it did not, nothing but an admission would tell the state of the new
    // clock, and denials would last until the old one is reached again.
    if limiter.is_ahead_of(window, tick) {
        let effect = Effect::SetBack { window, tick };
        let expiry = effect.apply_to(limiter)?;
        return Ok(Decision { answer, effect: Some(effect), expiry });
    }
    Ok(Decision { answer, effect: None, expiry: None })
}
