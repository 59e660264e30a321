//! Policies: what the writes and reads of keys with a common prefix leave out. They are settings of the server, not data: they
//! belong to no database, and FLUSHALL leaves them.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::rc::Rc;

use super::early_refresh::BETA_MAX;
use super::key_pattern::KeyPattern;
use super::policy_stats::PolicyStats;
use super::prefix_tree::PrefixTree;
use super::write_options::{Jitter, Terms};
use crate::clock::UnixMs;

/// The longest name of a policy or a loader, and the longest prefix, in bytes.
pub const MAX_NAME_LENGTH: usize = 512;

/// How often a line about names of keys is logged at most, in milliseconds.
const LOG_EVERY_MS: i64 = 10_000;
/// How much of a name of a key stands in the log.
const LOGGED_BYTES: usize = 100;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    pub name: Box<[u8]>,
    /// `None`: only for writes that name the policy.
    pub prefix: Option<Box<[u8]>>,
    pub terms: Terms,
    /// How long it is remembered that the origin has nothing.
    pub negative_ms: Option<i64>,
    /// A read sets the time to live back to full.
    pub sliding: bool,
    /// Of early refresh.
    pub beta: Option<f64>,
    /// The last part of the time to live, in percent, in which a read has the key loaded anew by the loader.
    pub ahead: Option<i64>,
    pub loader: Option<Box<[u8]>>,
    pub pattern: Option<KeyPattern>,
    pub enforce: Enforce,
}

impl Policy {
    /// Is everything in its range? What was typed is; what comes from a file is asked.
    pub(super) fn is_sound(&self) -> bool {
        let is_name = |name: &[u8]| (1..=MAX_NAME_LENGTH).contains(&name.len());
        let is_percent = |percent: i64| (0..=100).contains(&percent);
        let Terms { ttl_ms, jitter, grace_ms } = self.terms;
        let in_range = is_name(&self.name)
            && self.prefix.as_ref().is_none_or(|prefix| prefix.len() <= MAX_NAME_LENGTH)
            && self.loader.as_ref().is_none_or(|loader| is_name(loader))
            && [ttl_ms, self.negative_ms].into_iter().flatten().all(|ms| ms > 0)
            && grace_ms.is_none_or(|ms| ms >= 0)
            && jitter.is_none_or(|jitter| match jitter {
                Jitter::Ms(ms) => ms >= 0,
                Jitter::Percent(percent) => is_percent(percent),
            })
            && self.beta.is_none_or(|beta| (0.0..=BETA_MAX).contains(&beta))
            && self.ahead.is_none_or(is_percent);
        let timed = jitter.is_some() || grace_ms.is_some() || self.negative_ms.is_some() || self.sliding;
        in_range && (!timed || ttl_ms.is_some())
    }
}

/// What becomes of a write whose key does not fit the pattern.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforce {
    #[default]
    Off,
    /// It is counted and logged.
    Warn,
    Reject,
}

impl Enforce {
    pub const ALL: [Enforce; 3] = [Enforce::Off, Enforce::Warn, Enforce::Reject];

    pub fn word(self) -> &'static str {
        match self {
            Enforce::Off => "off",
            Enforce::Warn => "warn",
            Enforce::Reject => "reject",
        }
    }
}

/// A policy in force, and what was counted of its keys.
#[derive(Debug, Default)]
pub struct InForce {
    policy: Policy,
    /// Outlives a change of the policy.
    pub stats: Rc<PolicyStats>,
}

impl Deref for InForce {
    type Target = Policy;

    fn deref(&self) -> &Policy {
        &self.policy
    }
}

/// The policies of the server, by name and by prefix.
#[derive(Debug, Default)]
pub struct Policies {
    by_name: BTreeMap<Box<[u8]>, Rc<InForce>>,
    by_prefix: PrefixTree<Rc<InForce>>,
    misnamed: Misnamed,
}

/// Keys that did not fit, as far as no line in the log has told of them.
#[derive(Debug, Default)]
struct Misnamed {
    count: u64,
    /// The first of them, and the name of its policy.
    key: Box<[u8]>,
    policy: Box<[u8]>,
    logged: Option<UnixMs>,
}

impl Policies {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// The policy of a key: the one with the longest prefix that it begins with. What this costs follows the key alone, not how
    /// many policies there are.
    pub fn find(&self, key: &[u8]) -> Option<&Rc<InForce>> {
        self.by_prefix.longest(key)
    }

    pub fn get(&self, name: &[u8]) -> Option<&Rc<InForce>> {
        self.by_name.get(name)
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.by_name.values().map(|in_force| &in_force.policy)
    }

    /// The policy that has this prefix.
    pub fn of_prefix(&self, prefix: &[u8]) -> Option<&Policy> {
        self.by_prefix.get(prefix).map(|in_force| &in_force.policy)
    }

    /// Puts a policy in place of the one of that name, and goes on counting. Another one that has its prefix goes.
    pub fn put(&mut self, policy: Policy) {
        let stats = self.get(&policy.name).map(|in_force| Rc::clone(&in_force.stats)).unwrap_or_default();
        self.remove(&policy.name.clone());
        if let Some(prefix) = &policy.prefix
            && let Some(other) = self.by_prefix.remove(prefix)
        {
            self.by_name.remove(&other.name);
        }
        let policy = Rc::new(InForce { policy, stats });
        if let Some(prefix) = &policy.prefix {
            self.by_prefix.insert(prefix, Rc::clone(&policy));
        }
        self.by_name.insert(policy.name.clone(), policy);
    }

    /// Whether there was one of this name.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        let Some(policy) = self.by_name.remove(name) else { return false };
        if let Some(prefix) = &policy.prefix {
            self.by_prefix.remove(prefix);
        }
        true
    }

    /// All of them go: others are about to be loaded.
    pub fn clear(&mut self) {
        self.by_name.clear();
        self.by_prefix = PrefixTree::default();
    }

    /// A key was written that does not fit the pattern of its policy.
    pub(super) fn misnamed(&mut self, policy: &Policy, key: &[u8]) {
        if self.misnamed.count == 0 {
            self.misnamed.key = key.get(..LOGGED_BYTES).unwrap_or(key).into();
            self.misnamed.policy = policy.name.clone();
        }
        self.misnamed.count = self.misnamed.count.saturating_add(1);
    }

    /// A line for the log, now and then, if there is something to tell.
    pub fn log_line(&mut self, now: UnixMs) -> Option<String> {
        let Misnamed { count, key, policy, logged } = &mut self.misnamed;
        if *count == 0 || logged.is_some_and(|at| now.since(at) < LOG_EVERY_MS) {
            return None;
        }
        *logged = Some(now);
        Some(format!(
            "keyward: {} written keys do not match the pattern of their policy; the first: '{}', of policy '{}'",
            std::mem::take(count),
            key.escape_ascii(),
            policy.escape_ascii()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, prefix: Option<&str>) -> Policy {
        let bytes = |text: &str| Box::from(text.as_bytes());
        Policy { name: bytes(name), prefix: prefix.map(bytes), ..Policy::default() }
    }

    fn found(policies: &Policies, key: &str) -> Option<String> {
        policies.find(key.as_bytes()).map(|policy| String::from_utf8_lossy(&policy.name).into_owned())
    }

    #[test]
    fn a_policy_is_found_by_name_and_by_the_longest_prefix() {
        let mut policies = Policies::default();
        policies.put(policy("users", Some("user:")));
        policies.put(policy("sessions", Some("user:session:")));
        policies.put(policy("named", None));
        assert_eq!(found(&policies, "user:session:1").as_deref(), Some("sessions"));
        assert_eq!(found(&policies, "user:1").as_deref(), Some("users"));
        assert_eq!(found(&policies, "other"), None, "a policy without a prefix is for writes that name it");
        assert!(policies.get(b"named").is_some() && policies.len() == 3);
        assert!(policies.remove(b"sessions") && !policies.remove(b"sessions"));
        assert_eq!(found(&policies, "user:session:1").as_deref(), Some("users"));
    }

    #[test]
    fn a_policy_that_is_put_again_leaves_nothing_behind() {
        let mut policies = Policies::default();
        policies.put(policy("a", Some("x:")));
        policies.put(policy("a", Some("y:")));
        assert_eq!((found(&policies, "x:1"), found(&policies, "y:1").as_deref()), (None, Some("a")));
        policies.put(policy("b", Some("y:")));
        assert_eq!((found(&policies, "y:1").as_deref(), policies.len()), (Some("b"), 1));
        policies.clear();
        assert!(policies.is_empty() && found(&policies, "y:1").is_none());
    }

    #[test]
    fn the_log_is_told_once_in_a_while_and_of_all() {
        let mut policies = Policies::default();
        let of = policy("p", Some(""));
        assert_eq!(policies.log_line(UnixMs(0)), None);
        policies.misnamed(&of, b"bad\n%s");
        policies.misnamed(&of, b"other");
        let line = policies.log_line(UnixMs(5)).unwrap();
        assert!(line.contains("2 written keys") && line.contains(r"'bad\n%s'"), "{line}");
        policies.misnamed(&of, &[b'x'; 1000]);
        assert_eq!(policies.log_line(UnixMs(LOG_EVERY_MS + 4)), None);
        assert!(policies.log_line(UnixMs(LOG_EVERY_MS + 5)).unwrap().len() < 300);
        assert_eq!(policies.log_line(UnixMs(i64::MAX)), None);
    }
}
