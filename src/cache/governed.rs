//! What the policy of a key makes of a write or a read. Where a decision of the primary is repeated no policy has a say.

use std::rc::Rc;

use super::policies::{Enforce, InForce};
use super::write_options::{Expires, Terms, WriteOptions};
use super::{ahead, sliding};
use crate::args::Arg;
use crate::clock::UnixMs;
use crate::error::Error;
use crate::server::{Expiry, Server};

/// When a value that is to be written expires, by its options and the policy of its key. Whether there is such a policy: then the
/// command as it came does not say all. While there are no policies this is one test.
#[inline]
pub(super) fn expires<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    options: &WriteOptions<'_>,
    command: &'static str,
) -> Result<(Option<Expires>, bool), Error> {
    if server.state().cache.policies.is_empty() && options.policy.is_none() {
        return Ok((options.expires(server.now().to_ms(), command)?, false));
    }
    expires_by_policy(server, key, options, command)
}

#[inline(never)]
fn expires_by_policy<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    options: &WriteOptions<'_>,
    command: &'static str,
) -> Result<(Option<Expires>, bool), Error> {
    let now = server.now().to_ms();
    match of_write(server, key, options)? {
        None => Ok((options.expires(now, command)?, false)),
        Some(policy) => Ok((options.expires_under(policy.terms, now, command)?, true)),
    }
}

/// The policy of a write: the one that it names, else that of its key. The key's name is judged by it.
fn of_write<S: Server>(server: &mut S, key: Arg<'_>, options: &WriteOptions<'_>) -> Result<Option<Rc<InForce>>, Error> {
    if server.replayed() {
        return Ok(None);
    }
    let policies = &server.state().cache.policies;
    let policy = match options.policy {
        Some(name) => Some(policies.get(name.bytes).ok_or(Error::NoSuchPolicy)?),
        None => policies.find(key.bytes),
    };
    let Some(policy) = policy.cloned() else { return Ok(None) };
    judge_name(server, &policy, key)?;
    Ok(Some(policy))
}

fn judge_name<S: Server>(server: &mut S, policy: &InForce, key: Arg<'_>) -> Result<(), Error> {
    if policy.enforce == Enforce::Off || policy.pattern.as_ref().is_none_or(|pattern| pattern.fits(key.bytes)) {
        return Ok(());
    }
    let cache = &mut server.state().cache;
    if policy.enforce == Enforce::Reject {
        cache.count_for(policy, |counters| &mut counters.policy_rejections);
        return Err(Error::KeyName(policy.name.clone()));
    }
    cache.count_for(policy, |counters| &mut counters.policy_warnings);
    cache.policies.misnamed(policy, key.bytes);
    Ok(())
}

/// Until when it is remembered that the origin has nothing: by the options, else by the policy.
pub(super) fn negative_until<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    options: &WriteOptions<'_>,
    command: &'static str,
) -> Result<UnixMs, Error> {
    let policy = of_write(server, key, options)?;
    let terms = Terms { ttl_ms: policy.and_then(|policy| policy.negative_ms), ..Terms::default() };
    let expires = options.expires_under(terms, server.now().to_ms(), command)?;
    Ok(expires.ok_or(Error::Syntax)?.draw(|_| 0).soft)
}

/// The policy of a key that is read.
#[inline(always)]
pub(super) fn of_read<S: Server>(server: &mut S, key: Arg<'_>) -> Option<Rc<InForce>> {
    let policies = &server.state().cache.policies;
    if policies.is_empty() { None } else { policies.find(key.bytes).cloned() }
}

/// The same as [`of_read`] and [`was_hit`], for reads to which the policy says nothing else.
#[inline]
pub(super) fn hit<S: Server>(server: &mut S, key: Arg<'_>) {
    if !server.state().cache.policies.is_empty() {
        hit_under_policies(server, key);
    }
}

#[inline(never)]
fn hit_under_policies<S: Server>(server: &mut S, key: Arg<'_>) {
    let policy = of_read(server, key);
    was_hit(server, key, policy.as_deref());
}

/// A client was given the value of a key of this policy, which was not past its soft expiry.
#[inline(always)]
pub(super) fn was_hit<S: Server>(server: &mut S, key: Arg<'_>, policy: Option<&InForce>) {
    if let Some(policy) = policy {
        sliding::read(server, key, policy);
        ahead::read(server, key, policy);
    }
}

/// When a value that was found fresh becomes stale, and when it goes; `None` if never. Whether what is remembered of its grace is about
/// this value is not looked at: that would cost a hash of it.
pub(super) fn ends<S: Server>(server: &mut S, key: Arg<'_>) -> Option<(UnixMs, UnixMs)> {
    let Expiry::At(hard) = server.expiry(key) else { return None };
    let (db, now) = (server.db(), server.now().to_ms());
    let known = server.state().cache.freshness(db, key.bytes).filter(|known| known.soft > now);
    Some((known.map_or(hard, |known| known.soft.min(hard)), hard))
}
