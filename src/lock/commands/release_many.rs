//! `LOCK.MRELEASE n key [key ...] owner`

use super::acquire_many::{KeyList, counted_keys};
use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::lock::record::{self, Released};
use crate::lock::{grant, keyspace};
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct ReleaseMany;

pub struct Request<'a> {
    keys: KeyList<'a>,
    owner: Arg<'a>,
}

impl Command for ReleaseMany {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "lock.mrelease",
        family: Family::Lock,
        summary: "Releases several locks of one owner.",
        complexity: "O(N) where N is the number of keys.",
        since: "0.1.0",
        arity: -4,
        flags: &[Flag::Write],
        keys: Keys::Counted { step: 1 },
        access: Access::Update,
        tips: &[],
        args: &[ArgSpec::integer("numkeys"), ArgSpec::key().multiple(), ArgSpec::string("owner")],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (keys, owner) = (counted_keys(args)?, args.required()?);
        args.end()?;
        Ok(Request { keys, owner: record::owner(owner)? })
    }

    /// Replicated as it came, like RELEASE. First all are released, then those who wait are served: who waits for several of
    /// them finds them all free. A key of another type is an error before anything is released.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { keys, owner } = request;
        let now = (!server.replayed()).then(|| server.now().to_ms());
        for key in &keys {
            keyspace::look(server, *key, |_| ())?;
        }
        let mut count = 0_usize;
        for key in &keys {
            let released = keyspace::release(server, *key, |record| record.release(owner.bytes, None, now))?;
            count = count.saturating_add(usize::from(released != Released::NotHolder));
        }
        if count > 0 {
            server.replicate_verbatim();
            keys.iter().for_each(|key| grant::serve(server, *key));
        }
        Ok(Reply::count(count))
    }
}
