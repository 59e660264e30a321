//! CACHE.TTL

use smallvec::smallvec;

use crate::args::{Arg, Args};
use crate::cache::intent::Standing;
use crate::cache::read::soft_expiry;
use crate::cache::write_through;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Expiry, Server};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};
use crate::state::Dirty;

pub struct Ttl;

impl Command for Ttl {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.ttl",
        family: Family::Cache,
        summary: "Returns how long a value stays fresh and how long it stays at all, in milliseconds.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 2,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::First,
        access: Access::Inspect,
        tips: &["nondeterministic_output"],
        args: &[ArgSpec::key()],
    };
    type Request<'a> = Arg<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
        let key = args.required()?;
        if args.left() > 0 { Err(Error::WrongArity(args.command())) } else { Ok(key) }
    }

    fn run<'s, S: Server>(key: Arg<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let (soft, hard) = left(server, key);
        Ok(Reply::Ints(smallvec![soft, hard]))
    }
}

/// Soft and hard: the two differ while the value has a grace, and while it is being written in the database.
pub(super) fn left<S: Server>(server: &mut S, key: Arg<'_>) -> (i64, i64) {
    let (db, now) = (server.db(), server.now().to_ms());
    // A dirty value is there until the origin has it.
    let kept = match server.state().dirty(db, key.bytes) {
        Some(Dirty::Value(_)) => Some(-1),
        Some(Dirty::Deleted | Dirty::Unknown) => return (-2, -2),
        None => None,
    };
    let gone = kept.map_or((-2, -2), |ms| (ms, ms));
    let standing = write_through::standing(server, key);
    if server.state().cache.is_retired(db, key.bytes) || standing == Standing::RunOut {
        return gone;
    }
    let hard = match server.expiry(key) {
        Expiry::NoKey => return gone,
        Expiry::Never => None,
        Expiry::At(at) => Some(at.since(now).max(0)),
    };
    if standing == Standing::Open {
        return (0, hard.unwrap_or(-1));
    }
    let soft = soft_expiry(server, key).map(|soft| soft.since(now).max(0));
    let soft = if soft == Some(0) { kept.or(soft) } else { soft };
    let soft = soft.map_or(hard, |soft| Some(hard.map_or(soft, |hard| soft.min(hard))));
    (soft.unwrap_or(-1), hard.unwrap_or(-1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    #[test]
    fn tells_missing_lasting_and_the_time_left() {
        let mut server = FakeServer::new();
        server.put_other("list");
        server.call::<Set>("CACHE.SET k v PX 500 TAGS 1 t").unwrap();
        server.advance_ms(100);
        for (key, ms) in [("none", -2), ("list", -1), ("k", 400)] {
            assert_eq!(server.call::<Ttl>(&format!("CACHE.TTL {key}")), Ok(Reply::Ints(smallvec![ms, ms])), "{key}");
        }
        let now = server.now.to_ms();
        server.state.cache.retire(0, b"t", now);
        assert_eq!(server.call::<Ttl>("CACHE.TTL k"), Ok(Reply::Ints(smallvec![-2, -2])));
    }
}
