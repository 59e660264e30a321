//! Who holds a lock, and what that means for whoever else wants something of it. No server, no clock: the moment is passed in.

use serde::{Deserialize, Serialize};

use crate::args::Arg;
use crate::clock::UnixMs;
use crate::error::Error;
use crate::lock::fencing::is_token;

/// The longest owner name in bytes.
const MAX_OWNER: usize = 1024;

/// Checks an owner's name: 1 to 1024 bytes.
pub fn owner(arg: Arg<'_>) -> Result<Arg<'_>, Error> {
    if (1..=MAX_OWNER).contains(&arg.bytes.len()) { Ok(arg) } else { Err(Error::OwnerLength) }
}

/// One granted lock. It is held until its deadline and not a moment longer, whatever the key's own expiry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    owner: Box<[u8]>,
    standing: Standing,
}

/// What of a record changes while its owner keeps it, and what is replicated of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub token: i64,
    /// How many RELEASEs it takes; at least 1.
    pub holds: i64,
    pub deadline: UnixMs,
}

/// What became of an attempt to acquire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Nobody holds it any more.
    Free,
    /// Somebody else holds it.
    Busy,
    /// The caller holds it already, and nothing changed.
    Same { token: i64 },
    /// The caller holds it already, now longer or once more.
    Changed { standing: Standing, longer: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    NotHolder,
    /// Other holds are left.
    OneLess,
    Last,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    NotHolder,
    /// Held, and already longer than asked for.
    Same,
    Longer(Standing),
}

/// The record in a dump.
#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    owner: &'a [u8],
    token: i64,
    holds: i64,
    deadline: i64,
}

impl Record {
    /// `None` if a part is out of its range: the parts may come from anybody.
    pub fn new(owner: &[u8], standing: Standing) -> Option<Record> {
        let Standing { token, holds, deadline } = standing;
        let sound = (1..=MAX_OWNER).contains(&owner.len()) && is_token(token) && holds >= 1 && deadline.0 >= 1;
        sound.then(|| Record { owner: owner.into(), standing })
    }

    pub fn owner(&self) -> &[u8] {
        &self.owner
    }

    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Is the lease still running? Without a moment it is: where an effect is applied the clock has no say.
    pub fn held(&self, now: Option<UnixMs>) -> bool {
        now.is_none_or(|now| now < self.standing.deadline)
    }

    /// Is this the lock that `token` was granted for, and still held?
    pub fn valid(&self, token: i64, now: UnixMs) -> bool {
        self.standing.token == token && self.held(Some(now))
    }

    /// `owner` wants the lock until `deadline`. The holder's lease never gets shorter. `reentrant`: the holder takes one
    /// more hold.
    pub fn acquire(&mut self, owner: &[u8], now: UnixMs, deadline: UnixMs, reentrant: bool) -> Attempt {
        if !self.held(Some(now)) {
            return Attempt::Free;
        }
        if *self.owner != *owner {
            return Attempt::Busy;
        }
        let standing = &mut self.standing;
        let longer = standing.deadline < deadline;
        if !longer && !reentrant {
            return Attempt::Same { token: standing.token };
        }
        standing.deadline = standing.deadline.max(deadline);
        if reentrant {
            standing.holds = standing.holds.saturating_add(1);
        }
        Attempt::Changed { standing: *standing, longer }
    }

    /// Gives one hold up. After [`Released::Last`] the record is to be dropped.
    pub fn release(&mut self, owner: &[u8], token: Option<i64>, now: Option<UnixMs>) -> Released {
        if !self.is_holder(owner, token, now) {
            return Released::NotHolder;
        }
        if self.standing.holds <= 1 {
            return Released::Last;
        }
        self.standing.holds = self.standing.holds.saturating_sub(1);
        Released::OneLess
    }

    /// Lengthens the lease to `deadline`, never shortens it.
    pub fn extend(&mut self, owner: &[u8], token: Option<i64>, now: UnixMs, deadline: UnixMs) -> Extension {
        if !self.is_holder(owner, token, Some(now)) {
            return Extension::NotHolder;
        }
        if deadline <= self.standing.deadline {
            return Extension::Same;
        }
        self.standing.deadline = deadline;
        Extension::Longer(self.standing)
    }

    fn is_holder(&self, owner: &[u8], token: Option<i64>, now: Option<UnixMs>) -> bool {
        self.held(now) && *self.owner == *owner && token.is_none_or(|token| token == self.standing.token)
    }

    /// Appends the record as postcard writes it.
    pub fn encode(&self, bytes: Vec<u8>) -> Vec<u8> {
        let Standing { token, holds, deadline } = self.standing;
        let stored = Stored { owner: &self.owner, token, holds, deadline: deadline.0 };
        // Writing to a vector cannot fail; were it to, the dump would be empty, which decode refuses.
        postcard::to_extend(&stored, bytes).unwrap_or_default()
    }

    /// Takes what `encode` can have written and nothing else. Allocates no more than the dump's own length.
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        let (stored, rest) = postcard::take_from_bytes::<Stored<'_>>(bytes).ok()?;
        let Stored { owner, token, holds, deadline } = stored;
        let record = Record::new(owner, Standing { token, holds, deadline: UnixMs(deadline) })?;
        // Postcard accepts some numbers in a longer form than it writes.
        (rest.is_empty() && record.encode(Vec::new()) == bytes).then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record::new(b"ann", Standing { token: 7, holds: 1, deadline: UnixMs(100) }).unwrap()
    }

    #[test]
    fn a_lock_is_held_up_to_its_deadline_and_not_at_it() {
        assert!(record().held(Some(UnixMs(99))));
        assert!(!record().held(Some(UnixMs(100))));
        assert!(record().held(None));
    }

    #[test]
    fn out_of_range_parts_make_no_record() {
        let good = record().standing();
        let long = vec![b'x'; MAX_OWNER + 1];
        assert!(Record::new(&long[1..], good).is_some());
        assert!(Record::new(&long, good).is_none());
        assert!(Record::new(b"", good).is_none());
        for standing in [
            Standing { token: 0, ..good },
            Standing { token: 1 << 53, ..good },
            Standing { holds: 0, ..good },
            Standing { deadline: UnixMs(0), ..good },
            Standing { deadline: UnixMs(-1), ..good },
        ] {
            assert!(Record::new(b"ann", standing).is_none(), "{standing:?}");
        }
    }

    #[test]
    fn a_dump_comes_back_and_nothing_else_is_taken() {
        let dump = record().encode(Vec::new());
        assert_eq!(Record::decode(&dump), Some(record()));
        assert_eq!(Record::decode(&[&dump[..], &[0]].concat()), None);
        for len in 0..dump.len() {
            assert_eq!(Record::decode(&dump[..len]), None, "{len} bytes");
        }
    }
}
