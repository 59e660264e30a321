//! `LOCK.RELEASE key owner [TOKEN token]`

use crate::args::{Arg, Args, once};
use crate::commands::Command;
use crate::error::Error;
use crate::lock::record::{self, Released};
use crate::lock::{grant, keyspace};
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Release;

pub struct Request<'a> {
    key: Arg<'a>,
    owner: Arg<'a>,
    token: Option<i64>,
}

impl Command for Release {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "lock.release",
        family: Family::Lock,
        summary: "Releases a lock, or one of its reentrant holds.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: -3,
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::First,
        access: Access::Update,
        tips: &[],
        args: &[ArgSpec::key(), ArgSpec::string("owner"), ArgSpec::integer("token").token("TOKEN").optional()],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, owner, mut token) = (args.required()?, args.required()?, None);
        while let Some(word) = args.take() {
            if !word.is("TOKEN") {
                return Err(Error::Syntax);
            }
            once(&mut token, args.value()?)?;
        }
        let token = token.map(|token| token.int()).transpose()?;
        Ok(Request { key, owner: record::owner(owner)?, token })
    }

    /// Replicated as it came: where it is replayed the lock is in the same state, and no clock is asked.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, owner, token } = request;
        let now = (!server.replayed()).then(|| server.now().to_ms());
        let released = keyspace::release(server, key, |record| record.release(owner.bytes, token, now))?;
        if released == Released::NotHolder {
            return Ok(Reply::Int(0));
        }
        server.replicate_verbatim();
        grant::serve(server, key);
        Ok(Reply::Int(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;
    use crate::lock::commands::Acquire;

    const TOKEN: i64 = 1_750_000_000_000_000;

    /// A server where ann holds `job` for a second.
    fn locked() -> FakeServer {
        let mut server = FakeServer::new();
        server.call::<Acquire>("lock.acquire job ann PX 1000").unwrap();
        server.take_replicated();
        server
    }

    #[test]
    fn the_holder_releases_the_lock_and_the_command_is_replicated_alone() {
        let mut server = locked();
        assert_eq!(server.call::<Release>("lock.release job ann"), Ok(Reply::Int(1)));
        assert!(!server.holds("job"));
        assert_eq!(server.take_replicated(), ["lock.release job ann"]);
        assert_eq!(server.state.lock.locks(), 0);
        assert_eq!(server.state.lock.bytes(), 0);
    }

    #[test]
    fn nobody_else_releases_it() {
        let mut server = locked();
        for line in ["job bob", "job ann TOKEN 1", "job ann TOKEN -1", "other ann"] {
            assert_eq!(server.call::<Release>(&format!("lock.release {line}")), Ok(Reply::Int(0)), "{line}");
        }
        assert!(server.holds("job"));
        assert!(server.take_replicated().is_empty());
        assert_eq!(server.call::<Release>(&format!("lock.release job ann token {TOKEN}")), Ok(Reply::Int(1)));
    }

    #[test]
    fn an_expired_lock_is_not_held() {
        let mut server = locked();
        server.persist("job");
        server.advance_ms(1000);
        assert_eq!(server.call::<Release>("lock.release job ann"), Ok(Reply::Int(0)));
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn a_replayed_release_asks_no_clock() {
        let mut server = locked();
        server.replayed = true;
        server.advance_ms(60_000);
        assert_eq!(server.call::<Release>("lock.release job ann"), Ok(Reply::Int(1)));
        assert!(!server.holds("job"));
    }

    #[test]
    fn an_evicted_lock_can_be_released() {
        let mut server = locked();
        server.evict("job");
        assert_eq!(server.call::<Release>("lock.release job ann"), Ok(Reply::Int(1)));
        assert!(!server.holds("job"));
        assert_eq!(server.state.lock.limbo_len(), 0);
        assert_eq!(
            server.take_replicated(),
            ["DEL job".to_owned(), format!("KEYWARD.APPLY PUTBACK job {TOKEN}"), "lock.release job ann".to_owned()]
        );
    }

    #[test]
    fn bad_arguments_are_refused_by_name() {
        let mut server = locked();
        server.put_string("text", "v");
        for (line, error) in [
            ("job", Error::WrongArity("lock.release")),
            ("job ", Error::OwnerLength),
            ("job ann TOKEN", Error::Syntax),
            ("job ann TOKEN x", Error::NotAnInteger),
            ("job ann TOKEN 1 TOKEN 1", Error::Syntax),
            ("job ann EX 1", Error::Syntax),
            ("text ann", Error::WrongType),
        ] {
            assert_eq!(server.call::<Release>(&format!("lock.release {line}")), Err(error), "{line}");
        }
    }
}
