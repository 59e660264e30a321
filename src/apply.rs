//! KEYWARD.APPLY: effects that no public command could carry, since it would read a clock. For the link from the primary, the
//! AOF, and users who may do anything; the arguments are checked as untrusted.

use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::lock::Lock;
use crate::native::NativeValue;
use crate::ratelimit::concurrency::Slots;
use crate::ratelimit::limiter::Limiter;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};
use crate::writebehind::Handle;

pub struct Apply;

pub struct Request<'a> {
    effect: Arg<'a>,
    args: Args<'a>,
}

impl Command for Apply {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "keyward.apply",
        family: Family::Keyward,
        summary: "Applies an effect on a replica or while loading. Internal.",
        complexity: "As the effect.",
        since: "0.1.0",
        arity: -2,
        flags: &[Flag::Write, Flag::Admin],
        keys: Keys::OfEffect,
        access: Access::Update,
        tips: &[],
        args: &[ArgSpec::string("effect"), ArgSpec::string("argument").optional().multiple()],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let effect = args.required()?;
        Ok(Request { effect, args: args.clone() })
    }

    /// Each family knows its own effects; whoever applies one by hand has it replicated as it came.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { effect, mut args } = request;
        if effect.is("VALUE") {
            value(&mut args, server)?;
        } else {
            crate::cache::effects::apply(effect, &mut args, server)
                .or_else(|| crate::fencing::apply(effect, &mut args, server))
                .or_else(|| crate::lock::effects::apply(effect, &mut args, server))
                .or_else(|| crate::ratelimit::effects::apply(effect, &mut args, server))
                .or_else(|| crate::ratelimit::slot_effects::apply(effect, &mut args, server))
                .or_else(|| crate::writebehind::effects::apply(effect, &mut args, server))
                .ok_or(Error::BadEffect)??;
        }
        server.replicate_verbatim();
        Ok(Reply::Ok)
    }
}

/// Where the key of an effect is, or the first of several, which tells a cluster whose slot it concerns. Some have none.
pub fn key_position(effect: &[u8]) -> Option<usize> {
    let is = |word: &str| effect.eq_ignore_ascii_case(word.as_bytes());
    if ["RETIRE", "STALETAG", "RESERVE"].into_iter().any(is) {
        return None;
    }
    Some(if is("STALE") { 3 } else { 2 })
}

/// `VALUE key type bytes`: what an AOF rewrite without RDB preamble writes for a key of ours. The server writes the expiry
/// after it.
fn value<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (key, type_name, bytes) = (args.required()?, args.required()?, args.required()?);
    args.end()?;
    match type_name.bytes {
        name if name == Lock::TYPE_NAME.as_bytes() => put::<Lock, S>(server, key, bytes),
        name if name == Limiter::TYPE_NAME.as_bytes() => put::<Limiter, S>(server, key, bytes),
        name if name == Slots::TYPE_NAME.as_bytes() => put::<Slots, S>(server, key, bytes),
        name if name == Handle::TYPE_NAME.as_bytes() => put::<Handle, S>(server, key, bytes),
        _ => Err(Error::BadEffect),
    }
}

fn put<T: NativeValue, S: Server>(server: &mut S, key: Arg<'_>, bytes: Arg<'_>) -> Result<(), Error> {
    let mut value = T::decode(bytes.bytes).ok_or(Error::BadEffect)?;
    let (db, now) = (server.db(), server.now());
    value.linked(db, key.bytes, server.state(), now);
    server.put_native(key, value, None);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::key_position;

    #[test]
    fn an_effect_tells_its_key_however_it_is_written() {
        let at =
            ["retire", "StaleTag", "RESERVE", "stale", "STALE", "lock"].map(|effect| key_position(effect.as_bytes()));
        assert_eq!(at, [None, None, None, Some(3), Some(3), Some(2)]);
    }
}
