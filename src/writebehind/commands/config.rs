//! `WRITEBEHIND.CONFIG queue [DELAY ms] [MAXDELAY ms] [ATTEMPTS n] [MAXDIRTY n]`

use super::QUEUE;
use crate::args::{Arg, Args, once};
use crate::commands::Command;
use crate::error::Error;
use crate::fencing;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};
use crate::writebehind::settings::Settings;
use crate::writebehind::{effects, keyspace};

pub struct Config;

pub struct Request<'a> {
    queue: Arg<'a>,
    delay_ms: Option<i64>,
    max_delay_ms: Option<i64>,
    attempts: Option<i64>,
    max_dirty: Option<i64>,
}

impl Request<'_> {
    fn asks(&self) -> bool {
        [self.delay_ms, self.max_delay_ms, self.attempts, self.max_dirty].iter().all(Option::is_none)
    }

    fn applied_to(&self, settings: Settings) -> Settings {
        Settings {
            delay_ms: self.delay_ms.unwrap_or(settings.delay_ms),
            max_delay_ms: self.max_delay_ms.unwrap_or(settings.max_delay_ms),
            attempts: self.attempts.unwrap_or(settings.attempts),
            max_dirty: self.max_dirty.unwrap_or(settings.max_dirty),
        }
    }
}

impl Command for Config {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "writebehind.config",
        family: Family::WriteBehind,
        summary: "Sets or returns how long records of a queue rest, how often they are tried, and how many there may be.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: -2,
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::First,
        access: Access::Update,
        tips: &[],
        args: &[
            QUEUE,
            ArgSpec::integer("milliseconds").token("DELAY").optional(),
            ArgSpec::integer("milliseconds").token("MAXDELAY").optional(),
            ArgSpec::integer("count").token("ATTEMPTS").optional(),
            ArgSpec::integer("count").token("MAXDIRTY").optional(),
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let queue = args.required()?;
        let (mut delay, mut max_delay, mut attempts, mut max_dirty) = (None, None, None, None);
        while let Some(word) = args.take() {
            if word.is("DELAY") {
                once(&mut delay, args.value()?)?;
            } else if word.is("MAXDELAY") {
                once(&mut max_delay, args.value()?)?;
            } else if word.is("ATTEMPTS") {
                once(&mut attempts, args.value()?)?;
            } else if word.is("MAXDIRTY") {
                once(&mut max_dirty, args.value()?)?;
            } else {
                return Err(Error::Syntax);
            }
        }
        let number = |arg: Option<Arg<'_>>| arg.map(|arg| arg.int()).transpose();
        let request = Request {
            queue,
            delay_ms: number(delay)?,
            max_delay_ms: number(max_delay)?,
            attempts: number(attempts)?,
            max_dirty: number(max_dirty)?,
        };
        request.applied_to(Settings::default()).checked()?;
        Ok(request)
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let queue = request.queue;
        let id = keyspace::open(server, queue)?;
        let found = id.and_then(|id| server.state().writebehind.queue(id)).map(|queue| (queue.born, queue.settings));
        let before = found.map_or_else(Settings::default, |(_, settings)| settings);
        if request.asks() {
            return Ok(describe(before));
        }
        let born = match found {
            Some((born, _)) => born,
            None if server.memory_full(queue) => return Err(Error::OutOfMemory),
            None => fencing::next_token(server)?,
        };
        let settings = request.applied_to(before);
        let id = keyspace::open_or_create(server, queue, born)?;
        server.state().writebehind.change(id, |queue| queue.settings = settings);
        server.changed(queue);
        effects::propagate_settings(server, queue, born, settings);
        Ok(Reply::Ok)
    }
}

fn describe(settings: Settings) -> Reply<'static> {
    let Settings { delay_ms, max_delay_ms, attempts, max_dirty } = settings;
    Reply::Map(vec![
        ("delay", Reply::Int(delay_ms)),
        ("maxdelay", Reply::Int(max_delay_ms)),
        ("attempts", Reply::Int(attempts)),
        ("maxdirty", Reply::Int(max_dirty)),
    ])
}
