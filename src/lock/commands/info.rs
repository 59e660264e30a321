//! `LOCK.INFO key`

use crate::args::{Arg, Args};
use crate::clock::UnixMs;
use crate::commands::Command;
use crate::error::Error;
use crate::lock::holders::{Holder, Standing};
use crate::lock::keyspace;
use crate::lock::record::{Mode, Record};
use crate::lock::request;
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
        flags: &[Flag::ReadOnly],
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
        let (now, db) = (server.now().to_ms(), server.db());
        let held = keyspace::look(server, request.key, |record| held_by(record, now))?;
        let state = &server.state().lock;
        let waiters = state.queues.waiters(db, request.key.bytes).map(|waiter| describe_waiter(waiter, now)).collect();
        let ends = |session, token| state.sessions.ends(session, &token, db, request.key.bytes);
        Ok(match held.flatten() {
            Some((mode, token, holders)) => {
                let holders = holders.iter().map(|holder| describe_holder(holder, now, ends)).collect();
                map(mode.word(), permits(mode), token, holders, waiters)
            }
            None => map("free", 0, 0, vec![], waiters),
        })
    }
}

/// Mode, last token and those whose lease is running; `None` if it is nobody's.
fn held_by(record: &Record, now: UnixMs) -> Option<(Mode, i64, Vec<Holder>)> {
    let holders: Vec<Holder> = record.holders().iter().filter(|holder| holder.held(Some(now))).cloned().collect();
    Some((record.mode(), holders.last()?.token(), holders))
}

/// `ends`: does the hold of this token end with this connection?
fn describe_holder(holder: &Holder, now: UnixMs, ends: impl Fn(u64, i64) -> bool) -> Reply<'static> {
    let Standing { token, holds, deadline, .. } = holder.standing;
    let session =
        holder.session.filter(|session| ends(*session, token)).and_then(|session| i64::try_from(session).ok());
    Reply::Array(vec![
        Reply::OwnedBytes(holder.owner().to_vec()),
        Reply::Int(token),
        Reply::Int(holds),
        Reply::Int(deadline.since(now)),
        // 0: it does not end with a connection.
        Reply::Int(session.unwrap_or(0)),
    ])
}

fn describe_waiter(request: &request::Request, now: UnixMs) -> Reply<'static> {
    Reply::Array(vec![
        Reply::OwnedBytes(request.owner.to_vec()),
        Reply::Word(request.mode.word()),
        Reply::Int(now.since(request.since)),
    ])
}

/// How many may hold it at once; 0: any number.
fn permits(mode: Mode) -> i64 {
    match mode {
        Mode::Exclusive => 1,
        Mode::Shared => 0,
        Mode::Permits(n) => i64::from(n),
    }
}

fn map(
    mode: &'static str,
    permits: i64,
    token: i64,
    holders: Vec<Reply<'static>>,
    waiters: Vec<Reply<'static>>,
) -> Reply<'static> {
    Reply::Map(vec![
        ("mode", Reply::Word(mode)),
        ("permits", Reply::Int(permits)),
        ("token", Reply::Int(token)),
        ("holders", Reply::Array(holders)),
        ("waiters", Reply::Array(waiters)),
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
        assert_eq!(info(&mut server), map("exclusive", 1, TOKEN, holder(700), vec![]));
        server.evict("job");
        server.advance_ms(1);
        assert_eq!(info(&mut server), map("exclusive", 1, TOKEN, holder(699), vec![]));
    }

    #[test]
    fn no_lock_and_an_expired_lock_are_free() {
        let mut server = FakeServer::new();
        assert_eq!(info(&mut server), map("free", 0, 0, vec![], vec![]));
        server.call::<Acquire>("lock.acquire job ann PX 1000").unwrap();
        server.persist("job");
        server.advance_ms(1000);
        assert_eq!(info(&mut server), map("free", 0, 0, vec![], vec![]));
    }

    #[test]
    fn other_types_are_an_error() {
        let mut server = FakeServer::new();
        server.put_string("job", "v");
        assert_eq!(server.call::<Info>("lock.info job"), Err(Error::WrongType));
        assert_eq!(server.call::<Info>("lock.info job x"), Err(Error::Syntax));
    }
}
