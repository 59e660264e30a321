//! A policy in an RDB file.

use serde::{Deserialize, Serialize};

use super::key_pattern::KeyPattern;
use super::policies::{Enforce, Policy};
use super::write_options::{Jitter, Terms};

/// Durations are in milliseconds.
#[derive(Serialize, Deserialize)]
pub(super) struct SavedPolicy<'a> {
    name: &'a [u8],
    prefix: Option<&'a [u8]>,
    ttl: Option<i64>,
    jitter: Option<i64>,
    jitter_percent: Option<i64>,
    grace: Option<i64>,
    negative: Option<i64>,
    sliding: bool,
    beta: Option<f64>,
    ahead_percent: Option<i64>,
    loader: Option<&'a [u8]>,
    pattern: Option<&'a [u8]>,
    enforce: u8,
}

impl<'a> From<&'a Policy> for SavedPolicy<'a> {
    fn from(policy: &'a Policy) -> SavedPolicy<'a> {
        let (jitter, jitter_percent) = match policy.terms.jitter {
            Some(Jitter::Ms(ms)) => (Some(ms), None),
            Some(Jitter::Percent(percent)) => (None, Some(percent)),
            None => (None, None),
        };
        SavedPolicy {
            name: &policy.name,
            prefix: policy.prefix.as_deref(),
            ttl: policy.terms.ttl_ms,
            jitter,
            jitter_percent,
            grace: policy.terms.grace_ms,
            negative: policy.negative_ms,
            sliding: policy.sliding,
            beta: policy.beta,
            ahead_percent: policy.ahead,
            loader: policy.loader.as_deref(),
            pattern: policy.pattern.as_ref().map(KeyPattern::text),
            enforce: policy.enforce as u8,
        }
    }
}

impl SavedPolicy<'_> {
    /// `None`: no policy can be so.
    pub(super) fn policy(&self) -> Option<Policy> {
        let pattern = match self.pattern {
            Some(text) => Some(KeyPattern::parse(text)?),
            None => None,
        };
        let jitter = match (self.jitter, self.jitter_percent) {
            (None, None) => None,
            (Some(ms), None) => Some(Jitter::Ms(ms)),
            (None, Some(percent)) => Some(Jitter::Percent(percent)),
            (Some(_), Some(_)) => return None,
        };
        let policy = Policy {
            name: self.name.into(),
            prefix: self.prefix.map(Box::from),
            terms: Terms { ttl_ms: self.ttl, jitter, grace_ms: self.grace },
            negative_ms: self.negative,
            sliding: self.sliding,
            beta: self.beta,
            ahead: self.ahead_percent,
            loader: self.loader.map(Box::from),
            pattern,
            enforce: *Enforce::ALL.get(usize::from(self.enforce))?,
        };
        policy.is_sound().then_some(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_could_not_have_been_set_is_refused() {
        let spoiled: [fn(&mut SavedPolicy<'_>); 13] = [
            |saved| saved.name = b"",
            |saved| saved.ttl = Some(0),
            |saved| saved.jitter = Some(1),
            |saved| saved.grace = Some(1),
            |saved| saved.negative = Some(1),
            |saved| saved.sliding = true,
            |saved| (saved.ttl, saved.jitter) = (Some(1), Some(-1)),
            |saved| (saved.ttl, saved.jitter_percent) = (Some(1), Some(101)),
            |saved| saved.beta = Some(f64::NAN),
            |saved| saved.ahead_percent = Some(-1),
            |saved| saved.loader = Some(b""),
            |saved| saved.pattern = Some(b"{"),
            |saved| saved.enforce = 3,
        ];
        for (number, spoil) in spoiled.into_iter().enumerate() {
            let policy = Policy { name: b"p"[..].into(), ..Policy::default() };
            let mut saved = SavedPolicy::from(&policy);
            assert!(saved.policy().is_some());
            spoil(&mut saved);
            assert!(saved.policy().is_none(), "{number}");
        }
    }
}
