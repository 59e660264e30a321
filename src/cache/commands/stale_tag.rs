//! CACHE.STALETAG

use smallvec::SmallVec;

use super::invalidate_tag::{Tags, parse_tags};
use crate::args::Args;
use crate::cache::{reclaim, single_flight};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Permission, Server, Word};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct StaleTag;

impl Command for StaleTag {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.staletag",
        family: Family::Cache,
        summary: "Makes every value stale that carries any of the tags. Those without a grace are removed.",
        complexity: "O(N) where N is the number of keys, at most keyward.invalidate-sync-keys; the rest is dealt with in the background.",
        since: "0.1.0",
        arity: -2,
        flags: &[Flag::Write],
        keys: Keys::None,
        access: Access::None,
        tips: &["request_policy:all_shards", "response_policy:agg_sum"],
        args: &[ArgSpec::string("tag").multiple()],
    };
    type Request<'a> = Tags<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Tags<'a>, Error> {
        parse_tags(args)
    }

    /// As CACHE.INVALIDATETAG: first all keys of all the tags are stale, in O(tags); then as many as the setting allows are
    /// marked so one by one, and the rest is left to the reclaimer.
    fn run<'s, S: Server>(tags: Tags<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        if !tags.iter().all(|tag| server.permits(tag.bytes, Permission::Delete)) {
            return Err(Error::NoPermission);
        }
        let (db, now) = (server.db(), server.now().to_ms());
        single_flight::fence_tags(server, &tags);
        let mut retirements: SmallVec<[u64; 8]> = SmallVec::new();
        let mut words: SmallVec<[Word<'_>; 8]> = SmallVec::from_slice(&[Word::Text("STALETAG"), Word::Int(now.0)]);
        for &tag in &tags {
            let (retirement, any) = server.state().cache.stale(db, tag.bytes, now);
            retirements.extend(retirement.map(|retirement| retirement.number));
            words.extend(any.then_some(Word::Arg(tag)));
        }
        if words.len() > 2 {
            server.replicate("KEYWARD.APPLY", &words);
        }
        let mut budget = usize::try_from(server.state().config.invalidate_sync_keys).unwrap_or(0);
        let mut staled: usize = 0;
        for &retirement in &retirements {
            while budget > 0 {
                let keys = reclaim::listed(server, db, retirement, budget);
                let before = reclaim::left_of(server, db, retirement);
                budget = budget.saturating_sub(keys.len());
                let names: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
                staled = staled.saturating_add(reclaim::make_stale_later(server, db, retirement, &names, now));
                if reclaim::left_of(server, db, retirement) >= before {
                    break;
                }
            }
        }
        let left = |server: &mut S, retirement| reclaim::left_of(server, db, retirement);
        let later = retirements.iter().fold(0_usize, |sum, &number| sum.saturating_add(left(server, number)));
        let counters = &mut server.state().cache.counters;
        counters.invalidations = counters.invalidations.saturating_add(retirements.len() as u64);
        Ok(Reply::count(staled.saturating_add(later)))
    }
}
