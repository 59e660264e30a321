//! `RATELIMIT.PEEK key [SLIDING] count EX s|PX ms [COST n]`

use crate::args::Args;
use crate::commands::Command;
use crate::error::Error;
use crate::ratelimit::answer::Answer;
use crate::ratelimit::limit::Question;
use crate::ratelimit::limiter::Limiter;
use crate::ratelimit::sliding_window::Reading;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, CommandSpec, Family, Flag, Keys};

pub struct Peek;

impl Command for Peek {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "ratelimit.peek",
        family: Family::RateLimit,
        summary: "Tells how a limit stands and whether a request would be admitted, without charging it.",
        complexity: "O(1); up to O(257) when entries have left or a cost above 1 is denied.",
        since: "0.1.0",
        arity: -5,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::First,
        access: Access::Read,
        tips: &["nondeterministic_output"],
        args: Question::SPEC,
    };
    type Request<'a> = Question<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Question<'a>, Error> {
        Question::parse(args)
    }

    fn run<'s, S: Server>(request: Question<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Question { key, limit, cost } = request;
        let now = server.now();
        let answer = match server.native::<Limiter>(key)? {
            Some(limiter) => Answer::of(&limiter.reading(limit.window, now), limit, cost),
            None => Answer::of(&Reading::full(limit.window), limit, cost),
        };
        Ok(answer.reply())
    }
}
