//! `LOCK.FORCE key`

use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::lock::record::Released;
use crate::lock::{grant, keyspace};
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Force;

pub struct Request<'a> {
    key: Arg<'a>,
}

impl Command for Force {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "lock.force",
        family: Family::Lock,
        summary: "Releases a lock, whoever holds it.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 2,
        flags: &[Flag::Write, Flag::Admin],
        keys: Keys::First,
        access: Access::Delete,
        tips: &[],
        args: &[ArgSpec::key()],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let key = args.required()?;
        args.end()?;
        Ok(Request { key })
    }

    /// Replicated as it came, as RELEASE is.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let now = (!server.replayed()).then(|| server.now().to_ms());
        let freed = keyspace::release(server, request.key, |record| {
            (if record.held(now) { Released::Last } else { Released::NotHolder }, None)
        })?;
        let freed = freed == Released::Last;
        if freed {
            server.replicate_verbatim();
            grant::serve(server, request.key);
        }
        Ok(Reply::yes_no(freed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;
    use crate::lock::commands::{Acquire, Release};

    #[test]
    fn a_held_lock_is_freed_with_all_its_holds() {
        let mut server = FakeServer::new();
        for _ in 0..3 {
            server.call::<Acquire>("lock.acquire job ann PX 1000 REENTRANT").unwrap();
        }
        server.take_replicated();
        assert_eq!(server.call::<Force>("lock.force job"), Ok(Reply::Int(1)));
        assert!(!server.holds("job"));
        assert_eq!(server.take_replicated(), ["lock.force job"]);
        assert_eq!(server.call::<Release>("lock.release job ann"), Ok(Reply::Int(0)));
    }

    #[test]
    fn a_free_lock_is_not_freed_again() {
        let mut server = FakeServer::new();
        assert_eq!(server.call::<Force>("lock.force job"), Ok(Reply::Int(0)));
        server.call::<Acquire>("lock.acquire job ann PX 1000").unwrap();
        server.persist("job");
        server.advance_ms(1000);
        server.take_replicated();
        assert_eq!(server.call::<Force>("lock.force job"), Ok(Reply::Int(0)));
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn other_types_are_an_error() {
        let mut server = FakeServer::new();
        server.put_string("job", "v");
        assert_eq!(server.call::<Force>("lock.force job"), Err(Error::WrongType));
        assert_eq!(server.call::<Force>("lock.force job now"), Err(Error::Syntax));
    }
}
