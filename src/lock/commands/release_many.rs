//! `LOCK.MRELEASE n key [key ...] owner`

use smallvec::SmallVec;

use super::acquire_many::{KeyList, counted_keys};
use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::lock::record::{self, Released};
use crate::lock::{grant, keyspace};
use crate::reply::Reply;
use crate::server::{Server, Word};
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

    /// First all are released, then those who wait are served: who waits for several of them finds them all free. A key of
    /// another type is an error before anything is released. Replicated are the keys of which a hold was given up: a lease that
    /// is over here is none of a replica's business.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { keys, owner } = request;
        let now = (!server.replayed()).then(|| server.now().to_ms());
        for key in &keys {
            keyspace::look(server, *key, |_| ())?;
        }
        let mut released = KeyList::new();
        for key in &keys {
            if keyspace::release(server, *key, |record| record.release(owner.bytes, None, now))? != Released::NotHolder
            {
                released.push(*key);
            }
        }
        if !released.is_empty() {
            propagate(server, &released, keys.len(), owner);
            grant::serve_all(server, &released);
        }
        Ok(Reply::count(released.len()))
    }
}

fn propagate<S: Server>(server: &mut S, released: &[Arg<'_>], of: usize, owner: Arg<'_>) {
    if released.len() == of {
        return server.replicate_verbatim();
    }
    let count = i64::try_from(released.len()).unwrap_or(i64::MAX);
    let keys = released.iter().map(|key| Word::Arg(*key));
    let words: SmallVec<[Word<'_>; 10]> =
        [Word::Int(count)].into_iter().chain(keys).chain([Word::Arg(owner)]).collect();
    server.replicate("LOCK.MRELEASE", &words);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;
    use crate::lock::commands::Acquire;

    #[test]
    fn replicated_are_the_keys_of_which_a_hold_was_given_up() {
        let mut server = FakeServer::new();
        for (key, ms) in [("a", 1000), ("b", 10), ("c", 1000)] {
            server.call::<Acquire>(&format!("lock.acquire {key} ann PX {ms}")).unwrap();
        }
        // Its lease ends here, and a replica would not know.
        server.persist("b");
        server.advance_ms(10);
        server.take_replicated();
        assert_eq!(server.call::<ReleaseMany>("lock.mrelease 3 a b c ann"), Ok(Reply::Int(2)));
        assert_eq!(server.take_replicated(), ["LOCK.MRELEASE 2 a c ann"]);
        assert_eq!(server.call::<ReleaseMany>("lock.mrelease 3 a b c ann"), Ok(Reply::Int(0)));
        assert!(server.take_replicated().is_empty());
    }
}
