//! `LOCK.INFO key`

use crate::args::{Arg, Args};
use crate::clock::UnixMs;
use crate::commands::Command;
use crate::error::Error;
use crate::lock::keyspace;
use crate::lock::record::Record;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Info;

pub struct Request<'a> {
    key: Arg<'a>,
}

impl Command for Info {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "lock.info",
        family: Family::Lock,
        summary: "Describes a lock: its mode, its token, who holds it and who waits.",
        complexity: "O(n) with n holders and waiters.",
        since: "0.1.0",
        arity: 2,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::First,
        access: Access::Read,
        tips: &["nondeterministic_output"],
        args: &[ArgSpec::key()],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let key = args.required()?;
        args.end()?;
        Ok(Request { key })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let now = server.now().to_ms();
        let held = keyspace::look(server, request.key, |record| describe(record, now))?;
        Ok(held.flatten().unwrap_or_else(free))
    }
}

fn free() -> Reply<'static> {
    map("free", 0, 0, vec![])
}

/// `None` once the lease is over.
fn describe(record: &Record, now: UnixMs) -> Option<Reply<'static>> {
    let standing = record.standing();
    // The client's id is for sessions; without one it is 0.
    let holder = vec![
        Reply::OwnedBytes(record.owner().to_vec()),
        Reply::Int(standing.token),
        Reply::Int(standing.holds),
        Reply::Int(standing.deadline.since(now)),
        Reply::Int(0),
    ];
    record.held(Some(now)).then(|| map("exclusive", 1, standing.token, vec![Reply::Array(holder)]))
}

fn map(mode: &'static str, permits: i64, token: i64, holders: Vec<Reply<'static>>) -> Reply<'static> {
    Reply::Map(vec![
        ("mode", Reply::Word(mode)),
        ("permits", Reply::Int(permits)),
        ("token", Reply::Int(token)),
        ("holders", Reply::Array(holders)),
        ("waiters", Reply::Array(vec![])),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;
    use crate::lock::commands::Acquire;

    const TOKEN: i64 = 1_750_000_000_000_000;

    fn info(server: &mut FakeServer) -> Reply<'_> {
        server.call::<Info>("lock.info job").unwrap()
    }

    #[test]
    fn a_held_lock_names_its_holder() {
        let mut server = FakeServer::new();
        server.call::<Acquire>("lock.acquire job ann PX 1000").unwrap();
        server.call::<Acquire>("lock.acquire job ann PX 1000 REENTRANT").unwrap();
        server.advance_ms(300);
        let holder = |ttl_ms| {
            let owner = Reply::OwnedBytes(b"ann".to_vec());
            vec![Reply::Array(vec![owner, Reply::Int(TOKEN), Reply::Int(2), Reply::Int(ttl_ms), Reply::Int(0)])]
        };
        assert_eq!(info(&mut server), map("exclusive", 1, TOKEN, holder(700)));
        server.evict("job");
        server.advance_ms(1);
        assert_eq!(info(&mut server), map("exclusive", 1, TOKEN, holder(699)));
    }

    #[test]
    fn no_lock_and_an_expired_lock_are_free() {
        let mut server = FakeServer::new();
        assert_eq!(info(&mut server), free());
        server.call::<Acquire>("lock.acquire job ann PX 1000").unwrap();
        server.persist("job");
        server.advance_ms(1000);
        assert_eq!(info(&mut server), free());
    }

    #[test]
    fn other_types_are_an_error() {
        let mut server = FakeServer::new();
        server.put_string("job", "v");
        assert_eq!(server.call::<Info>("lock.info job"), Err(Error::WrongType));
        assert_eq!(server.call::<Info>("lock.info job x"), Err(Error::Syntax));
    }
}
