//! AHEAD: a read in the last part of the time to live has a loader load the key anew, before anybody has to wait for it.

use super::governed::ends;
use super::jobs::Reason;
use super::policies::Policy;
use super::write_options::percent_of;
use super::{loaders, single_flight};
use crate::args::Arg;
use crate::server::Server;

/// A client was given the fresh value of a key of this policy.
pub(super) fn read<S: Server>(server: &mut S, key: Arg<'_>, policy: &Policy) {
    let Some(loader) = policy.loader.as_ref().filter(|_| policy.ahead.is_some() && !server.is_replica()) else {
        return;
    };
    let db = server.db();
    let needless = due_in(server, key, policy).is_none()
        || server.state().dirty(db, key.bytes).is_some()
        || single_flight::hold(server, key).is_some();
    if !needless && loaders::want(server, loader, key.bytes, Reason::Ahead) {
        loaders::serve(server, loader);
    }
}

/// Milliseconds until the value is not fresh any more, if that is in the part of the time to live that the policy names.
pub(super) fn due_in<S: Server>(server: &mut S, key: Arg<'_>, policy: &Policy) -> Option<i64> {
    let part = percent_of(policy.terms.ttl_ms?, policy.ahead?)?;
    let (soft, _) = ends(server, key)?;
    let left = soft.since(server.now().to_ms());
    (left > 0 && left <= part).then_some(left)
}

#[cfg(test)]
mod tests {
    use crate::cache::commands::fetch::Fetch;
    use crate::cache::commands::fill::Fill;
    use crate::cache::commands::get::Get;
    use crate::cache::commands::loads::Loads;
    use crate::cache::commands::mget::MGet;
    use crate::cache::commands::policy;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;
    use crate::reply::Reply;

    /// A value that is to be loaded anew in the last 200 of 1000 ms, and 801 of them are over.
    fn ending(options: &str) -> FakeServer {
        let mut server = FakeServer::new();
        let words = format!("CACHE.POLICY SET p PREFIX k PX 1000 AHEAD 20% LOADER l{options}");
        server.call::<policy::Set>(&words).unwrap();
        server.call::<Set>("CACHE.SET k v").unwrap();
        server.advance_ms(801);
        server
    }

    fn jobs(server: &mut FakeServer) -> Vec<(String, String, i64)> {
        let Ok(Reply::Array(jobs)) = server.call::<Loads>("CACHE.LOADS l COUNT 10") else { panic!() };
        let told = |job| match job {
            Reply::Array(fields) => match &fields[1..] {
                [Reply::OwnedBytes(token), Reply::Word(reason), Reply::Int(left)] => {
                    (String::from_utf8_lossy(token).into_owned(), (*reason).to_owned(), *left)
                }
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        jobs.into_iter().map(told).collect()
    }

    #[test]
    fn a_read_in_the_last_part_queues_the_key_once() {
        for line in ["CACHE.GET k", "CACHE.MGET k", "CACHE.FETCH k"] {
            let mut server = ending("");
            for _ in 0..3 {
                match line.split(' ').next().unwrap() {
                    "CACHE.GET" => drop(server.call::<Get>(line).unwrap()),
                    "CACHE.MGET" => drop(server.call::<MGet>(line).unwrap()),
                    _ => drop(server.call::<Fetch>(line).unwrap()),
                }
            }
            let mut given = jobs(&mut server);
            assert_eq!(given.len(), 1, "{line}");
            let (token, reason, left) = given.remove(0);
            assert_eq!((reason.as_str(), left), ("AHEAD", 199));
            server.call::<Get>("CACHE.GET k").unwrap();
            assert!(jobs(&mut server).is_empty(), "somebody loads it");
            assert_eq!(server.call::<Fill>(&format!("CACHE.FILL k {token} new")), Ok(Reply::Int(1)));
            server.call::<Get>("CACHE.GET k").unwrap();
            assert!(jobs(&mut server).is_empty(), "its time begins anew");
        }
    }

    #[test]
    fn a_loader_that_waits_is_given_it_at_once_and_the_reader_his_value() {
        let mut server = ending("");
        assert_eq!(server.call::<Loads>("CACHE.LOADS l BLOCK 0"), Ok(Reply::Later));
        assert_eq!(server.call::<Get>("CACHE.GET k"), Ok(Reply::Bytes(b"v")));
        assert_eq!(server.answers.len(), 1);
    }

    #[test]
    fn a_job_that_is_not_needed_any_more_is_dropped() {
        let mut server = ending("");
        server.call::<Get>("CACHE.GET k").unwrap();
        server.call::<Set>("CACHE.SET k v").unwrap();
        assert!(jobs(&mut server).is_empty());
    }

    #[test]
    fn the_soft_expiry_counts() {
        let mut server = ending(" GRACE 5000");
        server.call::<Get>("CACHE.GET k").unwrap();
        assert_eq!(jobs(&mut server)[0].2, 199);
    }

    #[test]
    fn nothing_is_queued_before_that_nor_without_a_loader_nor_on_a_replica() {
        let mut server = ending("");
        server.call::<Set>("CACHE.SET k:early v").unwrap();
        server.call::<Get>("CACHE.GET k:early").unwrap();
        server.replica = true;
        server.call::<Get>("CACHE.GET k").unwrap();
        server.replica = false;
        server.call::<policy::Set>("CACHE.POLICY SET p PREFIX k PX 1000 AHEAD 20%").unwrap();
        server.call::<Get>("CACHE.GET k").unwrap();
        server.call::<policy::Set>("CACHE.POLICY SET p PREFIX k AHEAD 20% LOADER l").unwrap();
        server.call::<Get>("CACHE.GET k").unwrap();
        assert!(jobs(&mut server).is_empty());
    }
}
