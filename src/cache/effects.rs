//! What of this family is replicated by KEYWARD.APPLY. The primary decided; here it is only repeated.
//!
//! - `RETIRE unix-ms tag [tag ...]`: the keys of the tags are invalid;
//! - `STALETAG unix-ms tag [tag ...]`: they are stale, as far as they have a grace;
//! - `STALE soft-unix-ms key hard-unix-ms [key hard-unix-ms ...]`: a key's value is stale since then, and goes at the second moment;
//! - `SLIDE key soft-unix-ms hard-unix-ms [...]`: a read gave the key its full time to live; both moments are the same without a grace;
//! - `FLOOR key version until-unix-ms`: versions up to this one are refused;
//! - `INTENT key`, `NOINTENT key`: the key is being written in the database; that is over;
//! - `DOUBT key node unix-ms`, `NODOUBT key`: the next value of the key comes from that node of the cluster, and is not to be seen; it is;
//! - `NEGATIVE key until-unix-ms [tag ...]`, `NONEGATIVE key [key ...]`: the origin has nothing of the key; that is over.

use smallvec::SmallVec;

use super::State;
use super::freshness::{Freshness, fingerprint};
use super::write_options::{checked_tag, distinct_tags, parse_version};
use super::{sliding, staleness, write_through};
use crate::args::{Arg, Args};
use crate::clock::UnixMs;
use crate::cluster::NodeId;
use crate::error::Error;
use crate::server::Server;

/// Applies `effect` if it is one of this family's; `None` if it is not.
pub fn apply<S: Server>(effect: Arg<'_>, args: &mut Args<'_>, server: &mut S) -> Option<Result<(), Error>> {
    let applied = if effect.is("RETIRE") {
        retire(args, server, |cache, db, tag, now| {
            cache.retire(db, tag, now);
        })
    } else if effect.is("STALETAG") {
        retire(args, server, |cache, db, tag, now| {
            cache.stale(db, tag, now);
        })
    } else if effect.is("STALE") {
        stale(args, server)
    } else if effect.is("SLIDE") {
        slide(args, server)
    } else if effect.is("NEGATIVE") {
        negative(args, server)
    } else if effect.is("NONEGATIVE") {
        no_negative(args, server)
    } else if effect.is("INTENT") {
        intent(args, server, true)
    } else if effect.is("NOINTENT") {
        intent(args, server, false)
    } else if effect.is("FLOOR") {
        floor(args, server)
    } else if effect.is("DOUBT") {
        doubt(args, server)
    } else if effect.is("NODOUBT") {
        no_doubt(args, server)
    } else {
        return None;
    };
    Some(applied)
}

/// The keys go when the UNLINKs of the primary arrive, or, after a promotion, by the reclaimer here.
fn retire<S: Server>(
    args: &mut Args<'_>,
    server: &mut S,
    retire: impl Fn(&mut State, usize, &[u8], UnixMs),
) -> Result<(), Error> {
    let now = moment(args)?;
    let tags = args.rest();
    if tags.clone().next().is_none() || tags.clone().any(|tag| checked_tag(tag).is_err()) {
        return Err(Error::BadEffect);
    }
    let db = server.db();
    let cache = &mut server.state().cache;
    for tag in tags {
        retire(cache, db, tag.bytes, now);
    }
    Ok(())
}

fn doubt<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (key, node, since) = (args.required()?, args.required()?, moment(args)?);
    args.end()?;
    let node = NodeId::new(node.bytes).ok_or(Error::BadEffect)?;
    let db = server.db();
    server.state().cache.doubts.announce(db, key.bytes, node, since);
    Ok(())
}

fn no_doubt<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let key = args.required()?;
    args.end()?;
    let db = server.db();
    server.state().cache.doubts.settle(db, key.bytes);
    Ok(())
}

fn stale<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let soft = moment(args)?;
    let mut keys: SmallVec<[(Arg<'_>, UnixMs); 8]> = SmallVec::new();
    while let Some(key) = args.take() {
        keys.push((key, moment(args)?));
    }
    if keys.is_empty() {
        return Err(Error::BadEffect);
    }
    let db = server.db();
    for (key, hard) in keys {
        let known = server.state().cache.freshness(db, key.bytes);
        let known = match known {
            Some(known) => known,
            None => {
                let Ok(Some(value)) = server.string(key) else { continue };
                let grace_ms = hard.since(soft).max(1);
                Freshness { soft, grace_ms, fingerprint: fingerprint(server.bytes(value)), load_us: 0 }
            }
        };
        staleness::apply(server, db, key.bytes, Freshness { soft, ..known }, Some(hard));
    }
    Ok(())
}

fn slide<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let mut keys: SmallVec<[(Arg<'_>, UnixMs, UnixMs); 8]> = SmallVec::new();
    while let Some(key) = args.take() {
        let (soft, hard) = (moment(args)?, moment(args)?);
        keys.push((key, soft, hard));
    }
    if keys.is_empty() || keys.iter().any(|(_, soft, hard)| soft > hard) {
        return Err(Error::BadEffect);
    }
    let db = server.db();
    for (key, soft, hard) in keys {
        if server.exists(key.bytes) {
            sliding::apply(server, db, key.bytes, soft, hard);
        }
    }
    Ok(())
}

fn negative<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let key = args.take().ok_or(Error::BadEffect)?;
    let until = moment(args)?;
    let tags = distinct_tags(args.rest()).map_err(|_| Error::BadEffect)?;
    let tags: SmallVec<[&[u8]; 8]> = tags.iter().map(|tag| tag.bytes).collect();
    let db = server.db();
    let state = server.state();
    state.cache.set_negative(&state.config, db, key.bytes, until, &tags)
}

fn no_negative<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let keys = args.rest();
    if keys.clone().next().is_none() {
        return Err(Error::BadEffect);
    }
    let db = server.db();
    for key in keys {
        server.state().cache.end_negative(db, key.bytes);
    }
    Ok(())
}

/// The value that was committed, or the UNLINK, came before the end.
fn intent<S: Server>(args: &mut Args<'_>, server: &mut S, open: bool) -> Result<(), Error> {
    let key = args.take().ok_or(Error::BadEffect)?;
    args.end().map_err(|_| Error::BadEffect)?;
    write_through::apply(server, key, open);
    Ok(())
}

/// The key itself goes by an UNLINK that came before.
fn floor<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let key = args.take().ok_or(Error::BadEffect)?;
    let version = args.take().and_then(|arg| parse_version(arg).ok()).ok_or(Error::BadEffect)?;
    let until = moment(args)?;
    args.end().map_err(|_| Error::BadEffect)?;
    let db = server.db();
    let state = server.state();
    state.cache.set_floor(&state.config, (db, key.bytes), version, until, None).map(|_| ())
}

fn moment(args: &mut Args<'_>) -> Result<UnixMs, Error> {
    let ms = args.take().and_then(|arg| arg.int().ok()).filter(|&ms| ms >= 0);
    ms.map(UnixMs).ok_or(Error::BadEffect)
}

#[cfg(test)]
mod tests {
    use crate::apply::Apply;
    use crate::cache::commands::set::Set;
    use crate::error::Error;
    use crate::fake_server::FakeServer;
    use crate::reply::Reply;

    #[test]
    fn a_retirement_hides_the_keys_and_leaves_them_to_the_primary() {
        let mut server = FakeServer::new();
        server.replayed = true;
        server.call::<Set>("CACHE.SET k v TAGS 1 t").unwrap();
        server.take_replicated();
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY retire 77 t unknown"), Ok(Reply::Ok));
        assert!(server.state.cache.is_retired(0, b"k") && server.keys.len() == 1);
        let info = server.state.cache.tag_info(0, b"t");
        assert_eq!((info.keys, info.invalidations.count, info.invalidations.last.0), (0, 1, 77));
        assert_eq!(server.take_replicated(), ["KEYWARD.APPLY retire 77 t unknown"], "for replicas of this replica");
    }

    #[test]
    fn a_floor_holds_until_the_moment_the_primary_named() {
        let mut server = FakeServer::new();
        let now = server.now.to_ms();
        server.call::<Apply>(&format!("KEYWARD.APPLY FLOOR k 5 {}", now.0 + 10)).unwrap();
        assert_eq!(server.state.cache.version_seen(0, b"k", now), Some(5));
        assert_eq!(server.state.cache.version_seen(0, b"k", now.plus(10)), None);
    }

    #[test]
    fn malformed_effects_change_nothing() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v TAGS 1 t").unwrap();
        server.take_replicated();
        for line in [
            "RETIRE",
            "RETIRE 5",
            "RETIRE x t",
            "RETIRE -1 t",
            "FLOOR",
            "FLOOR k",
            "FLOOR k 1",
            "FLOOR k -1 5",
            "FLOOR k 1 -5",
            "FLOOR k 1 5 x",
            "STALETAG 5",
            "STALE 5",
            "STALE 5 k",
            "STALE -1 k 5",
            "STALE 5 k x",
            "SLIDE",
            "SLIDE k",
            "SLIDE k 5",
            "SLIDE k 5 4",
            "SLIDE k -5 4",
            "SLIDE k 4 5 l",
            "NEGATIVE k",
            "NEGATIVE k x",
            "NONEGATIVE",
            "INTENT",
            "INTENT k x",
            "NOINTENT",
            "NOINTENT k x",
            "OTHER k",
        ] {
            assert_eq!(server.call::<Apply>(&format!("KEYWARD.APPLY {line}")), Err(Error::BadEffect), "{line}");
        }
        let tag = vec![b't'; 513];
        let long = [&b"KEYWARD.APPLY"[..], b"RETIRE", b"5", b"t", &tag].map(<[u8]>::to_vec).to_vec();
        assert_eq!(server.call_argv::<Apply>(long), Err(Error::BadEffect));
        assert!(!server.state.cache.has_retired());
        assert!(server.take_replicated().is_empty());
    }
}
