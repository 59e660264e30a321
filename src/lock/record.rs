//! Who holds a lock, and what that means for whoever else wants something of it. No server, no clock: the moment is passed in.

use serde::{Deserialize, Serialize};

use crate::args::Arg;
use crate::clock::UnixMs;
use crate::error::Error;
use crate::lock::holders::{Holder, Holders, MAX_OWNER, MAX_PERMITS, Standing};

/// Checks an owner's name: 1 to 1024 bytes.
pub fn owner(arg: Arg<'_>) -> Result<Arg<'_>, Error> {
    if (1..=MAX_OWNER).contains(&arg.bytes.len()) { Ok(arg) } else { Err(Error::OwnerLength) }
}

/// How a lock is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// One holder.
    Exclusive,
    /// Readers: any number.
    Shared,
    /// A semaphore: so many holders at most.
    Permits(u32),
}

/// A lock that somebody holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    mode: Mode,
    holders: Holders,
}

/// What somebody asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub owner: &'a [u8],
    pub mode: Mode,
    pub deadline: UnixMs,
    pub reentrant: bool,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Nobody holds it any more: to be granted.
    Free,
    /// Others hold it in the same mode, and there is room: to be granted beside them.
    Join,
    /// The only reader becomes the writer: to be granted anew, with this standing but for the token.
    Upgrade {
        standing: Standing,
        session: Option<u64>,
    },
    Busy,
    /// The caller holds it already, and nothing changed.
    Same {
        token: i64,
    },
    /// The caller holds it already, now longer or once more.
    Changed(Standing),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    NotHolder,
    /// Other holds of the same owner are left.
    OneLess,
    /// Other holders are left.
    OneLeft,
    /// Nobody holds it any more: the record is to be dropped.
    Last,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    NotHolder,
    /// Held, and already longer than asked for.
    Same,
    Longer(Standing),
}

/// A holder in a dump.
#[derive(Serialize, Deserialize)]
struct StoredHolder<'a> {
    owner: &'a [u8],
    token: i64,
    holds: i64,
    deadline: i64,
    keys: u32,
}

impl Mode {
    fn is_sound(self) -> bool {
        !matches!(self, Mode::Permits(n) if !(1..=MAX_PERMITS).contains(&n))
    }

    /// How many may hold it at once.
    fn room(self) -> usize {
        match self {
            Mode::Exclusive => 1,
            Mode::Shared => usize::MAX,
            Mode::Permits(n) => usize::try_from(n).unwrap_or(usize::MAX),
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Mode::Exclusive => "exclusive",
            Mode::Shared => "shared",
            Mode::Permits(_) => "permits",
        }
    }
}

impl Record {
    pub fn new(mode: Mode, holder: Holder) -> Option<Record> {
        mode.is_sound().then(|| Record { mode, holders: Holders::one(holder) })
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    pub fn holders(&self) -> &Holders {
        &self.holders
    }

    /// The last token that was granted for it: tells this lock from a later one of the same name.
    pub fn token(&self) -> i64 {
        self.holders.last_token()
    }

    /// When the last of its leases ends.
    pub fn deadline(&self) -> UnixMs {
        self.holders.last_deadline()
    }

    /// When the next of its running leases ends; `None` if all are over.
    pub fn next_deadline(&self, now: UnixMs) -> Option<UnixMs> {
        self.holders.next_deadline(now)
    }

    /// Is a lease still running? Without a moment one is: where an effect is applied the clock has no say.
    pub fn held(&self, now: Option<UnixMs>) -> bool {
        now.is_none_or(|now| now < self.deadline())
    }

    /// Was `token` granted for this lock, and is that lease still running?
    pub fn valid(&self, token: i64, now: UnixMs) -> bool {
        self.holders.of_token(token).is_some_and(|holder| holder.held(Some(now)))
    }

    /// Takes those out whose lease is over, if others hold it still.
    pub fn expire(&mut self, now: UnixMs) -> Vec<Holder> {
        self.holders.expire(now)
    }

    /// What becomes of this wish. `waited`: others wait for the lock, and came first. Who holds it already never gets a shorter
    /// lease. To be called after [`expire`](Record::expire).
    ///
    /// # Errors
    /// `UpgradeDeadlock` if he would wait for himself, `PermitsMismatch` if the semaphore is of another size.
    pub fn acquire(&mut self, wanted: &Wanted<'_>, now: UnixMs, waited: bool) -> Result<Attempt, Error> {
        if !self.held(Some(now)) {
            return Ok(if waited { Attempt::Busy } else { Attempt::Free });
        }
        let Some(own) = self.holders.of_owner(wanted.owner) else { return self.join(wanted.mode, waited) };
        let (before, session) = (own.standing, own.session);
        let standing = Standing {
            deadline: before.deadline.max(wanted.deadline),
            holds: before.holds.saturating_add(i64::from(wanted.reentrant)),
            ..before
        };
        match (self.mode, wanted.mode) {
            // Whoever has it for himself has what he asks for.
            (Mode::Exclusive, _) | (Mode::Shared, Mode::Shared) => {}
            (Mode::Permits(n), Mode::Permits(other)) if n == other => {}
            (Mode::Permits(n), Mode::Permits(_)) => return Err(Error::PermitsMismatch(n)),
            (Mode::Shared, Mode::Exclusive) if self.holders.len() == 1 && !waited => {
                return Ok(Attempt::Upgrade { standing, session });
            }
            _ => return Err(Error::UpgradeDeadlock),
        }
        if standing == before {
            return Ok(Attempt::Same { token: before.token });
        }
        self.holders.change(before.token, |holder| holder.standing = standing);
        Ok(Attempt::Changed(standing))
    }

    /// Is there room for somebody else?
    fn join(&self, mode: Mode, waited: bool) -> Result<Attempt, Error> {
        if let (Mode::Permits(n), Mode::Permits(other)) = (self.mode, mode)
            && n != other
        {
            return Err(Error::PermitsMismatch(n));
        }
        let room = self.mode == mode && self.holders.len() < mode.room();
        Ok(if room && !waited { Attempt::Join } else { Attempt::Busy })
    }

    /// Adds a holder, or changes the one of this owner; who was there instead.
    ///
    /// # Errors
    /// `BadEffect` if there is no room, or his token is another one's: nobody who was granted the lock meets that.
    pub fn put(&mut self, holder: Holder) -> Result<Option<Holder>, Error> {
        let fits = match self.holders.of_token(holder.token()) {
            Some(other) => other.owner() == holder.owner(),
            None => self.holders.len() < self.mode.room() || self.holders.of_owner(holder.owner()).is_some(),
        };
        if fits { Ok(self.holders.put(holder)) } else { Err(Error::BadEffect) }
    }

    /// Binds the hold of this token to a connection; the one it was bound to before.
    pub fn bind(&mut self, token: i64, session: u64) -> Option<u64> {
        self.holders.change(token, |holder| holder.session.replace(session)).flatten()
    }

    /// Gives one hold up. After [`Released::OneLeft`] the holder has been taken out, after [`Released::Last`] he is still there.
    pub fn release(&mut self, owner: &[u8], token: Option<i64>, now: Option<UnixMs>) -> (Released, Option<Holder>) {
        let Some(Standing { token, holds, .. }) = self.find(owner, token, now) else {
            return (Released::NotHolder, None);
        };
        if holds > 1 {
            self.holders.change(token, |holder| holder.standing.holds = holds.saturating_sub(1));
            return (Released::OneLess, None);
        }
        self.remove(token)
    }

    /// Takes the holder of this token out, with all his holds.
    pub fn remove(&mut self, token: i64) -> (Released, Option<Holder>) {
        match self.holders.of_token(token) {
            None => (Released::NotHolder, None),
            Some(_) if self.holders.len() == 1 => (Released::Last, None),
            Some(_) => (Released::OneLeft, self.holders.remove(token)),
        }
    }

    /// Lengthens the lease to `deadline`, never shortens it.
    pub fn extend(&mut self, owner: &[u8], token: Option<i64>, now: UnixMs, deadline: UnixMs) -> Extension {
        let Some(standing) = self.find(owner, token, Some(now)) else { return Extension::NotHolder };
        if deadline <= standing.deadline {
            return Extension::Same;
        }
        self.holders.change(standing.token, |holder| holder.standing.deadline = deadline);
        Extension::Longer(Standing { deadline, ..standing })
    }

    /// The owner's hold, if its lease is running.
    pub fn holder(&self, owner: &[u8], now: UnixMs) -> Option<&Holder> {
        self.holders.of_owner(owner).filter(|holder| holder.held(Some(now)))
    }

    fn find(&self, owner: &[u8], token: Option<i64>, now: Option<UnixMs>) -> Option<Standing> {
        let holder = self.holders.of_owner(owner).filter(|holder| holder.held(now))?;
        Some(holder.standing).filter(|standing| token.is_none_or(|token| token == standing.token))
    }

    /// A copy under another name: whose connection ends has nothing to do with it.
    pub fn copied(&self) -> Record {
        let mut copy = self.clone();
        let tokens: Vec<i64> = copy.holders.iter().filter(|h| h.session.is_some()).map(Holder::token).collect();
        for token in tokens {
            copy.holders.change(token, |holder| holder.session = None);
        }
        copy
    }

    /// Bytes of the owners' names, and of holders beyond the first.
    pub fn heap_bytes(&self) -> usize {
        self.holders.heap_bytes()
    }

    /// Appends the record as postcard writes it.
    pub fn encode(&self, bytes: Vec<u8>) -> Vec<u8> {
        let stored: Vec<StoredHolder<'_>> = self.holders.iter().map(StoredHolder::of).collect();
        // Writing to a vector cannot fail; were it to, the dump would be empty, which decode refuses.
        postcard::to_extend(&(self.mode, stored), bytes).unwrap_or_default()
    }

    /// Takes what `encode` can have written and nothing else. Allocates in proportion to the dump's own length.
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        let ((mode, stored), rest) = postcard::take_from_bytes::<(Mode, Vec<StoredHolder<'_>>)>(bytes).ok()?;
        let (first, others) = stored.split_first()?;
        let mut record = Record::new(mode, first.holder()?)?;
        for other in others {
            let before = record.token();
            let is_next = record.put(other.holder()?).ok()?.is_none() && record.token() > before;
            if !is_next {
                return None;
            }
        }
        // Postcard accepts some numbers in a longer form than it writes.
        (rest.is_empty() && record.encode(Vec::new()) == bytes).then_some(record)
    }
}

impl StoredHolder<'_> {
    fn of(holder: &Holder) -> StoredHolder<'_> {
        let Standing { token, holds, deadline, keys } = holder.standing;
        StoredHolder { owner: holder.owner(), token, holds, deadline: deadline.0, keys }
    }

    fn holder(&self) -> Option<Holder> {
        let &StoredHolder { owner, token, holds, deadline, keys } = self;
        Holder::new(owner, Standing { token, holds, deadline: UnixMs(deadline), keys })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Standing = Standing { token: 7, holds: 1, deadline: UnixMs(100), keys: 1 };

    fn holder(owner: &str, token: i64) -> Holder {
        Holder::new(owner.as_bytes(), Standing { token, ..GOOD }).unwrap()
    }

    fn record(mode: Mode) -> Record {
        Record::new(mode, holder("ann", 7)).unwrap()
    }

    fn wants(owner: &str, mode: Mode) -> Wanted<'_> {
        Wanted { owner: owner.as_bytes(), mode, deadline: UnixMs(100), reentrant: false }
    }

    fn asked(record: &mut Record, owner: &str, mode: Mode, waited: bool) -> Result<Attempt, Error> {
        record.acquire(&wants(owner, mode), UnixMs(50), waited)
    }

    #[test]
    fn a_lock_is_held_up_to_its_deadline_and_not_at_it() {
        let record = record(Mode::Exclusive);
        assert!(record.held(Some(UnixMs(99))));
        assert!(!record.held(Some(UnixMs(100))));
        assert!(record.held(None));
    }

    #[test]
    fn readers_hold_together_but_not_past_one_who_waits() {
        let mut readers = record(Mode::Shared);
        assert_eq!(asked(&mut readers, "bob", Mode::Shared, false), Ok(Attempt::Join));
        assert_eq!(asked(&mut readers, "bob", Mode::Shared, true), Ok(Attempt::Busy));
        assert_eq!(asked(&mut readers, "bob", Mode::Exclusive, false), Ok(Attempt::Busy));
        assert_eq!(asked(&mut readers, "ann", Mode::Shared, true), Ok(Attempt::Same { token: 7 }));
    }

    #[test]
    fn only_the_only_reader_is_upgraded() {
        let mut readers = record(Mode::Shared);
        let upgrade = Attempt::Upgrade { standing: GOOD, session: None };
        assert_eq!(asked(&mut readers, "ann", Mode::Exclusive, false), Ok(upgrade));
        assert_eq!(asked(&mut readers, "ann", Mode::Exclusive, true), Err(Error::UpgradeDeadlock));
        assert_eq!(asked(&mut readers, "ann", Mode::Permits(2), false), Err(Error::UpgradeDeadlock));
        readers.put(holder("bob", 8)).unwrap();
        assert_eq!(asked(&mut readers, "ann", Mode::Exclusive, false), Err(Error::UpgradeDeadlock));
        let mut writer = record(Mode::Exclusive);
        assert_eq!(asked(&mut writer, "ann", Mode::Shared, true), Ok(Attempt::Same { token: 7 }));
    }

    #[test]
    fn a_semaphore_has_its_permits_and_no_other_number() {
        let mut semaphore = record(Mode::Permits(2));
        assert_eq!(asked(&mut semaphore, "bob", Mode::Permits(3), false), Err(Error::PermitsMismatch(2)));
        assert_eq!(asked(&mut semaphore, "ann", Mode::Permits(3), false), Err(Error::PermitsMismatch(2)));
        assert_eq!(asked(&mut semaphore, "bob", Mode::Permits(2), false), Ok(Attempt::Join));
        semaphore.put(holder("bob", 8)).unwrap();
        assert!(semaphore.put(holder("cy", 9)).is_err(), "no room");
        assert!(semaphore.put(holder("bob", 7)).is_err(), "ann's token");
        assert_eq!(asked(&mut semaphore, "cy", Mode::Permits(2), false), Ok(Attempt::Busy));
        assert_eq!(asked(&mut semaphore, "cy", Mode::Shared, false), Ok(Attempt::Busy));
        assert_eq!(asked(&mut semaphore, "bob", Mode::Permits(2), false), Ok(Attempt::Same { token: 8 }));
    }

    #[test]
    fn holders_leave_one_by_one() {
        let mut readers = record(Mode::Shared);
        readers.put(Holder::new(b"bob", Standing { token: 8, deadline: UnixMs(200), ..GOOD }).unwrap()).unwrap();
        assert_eq!((readers.token(), readers.deadline()), (8, UnixMs(200)));
        for (now, next) in [(99, Some(100)), (100, Some(200)), (199, Some(200)), (200, None)] {
            assert_eq!(readers.next_deadline(UnixMs(now)), next.map(UnixMs), "at {now}");
        }
        assert!(readers.valid(7, UnixMs(99)) && !readers.valid(7, UnixMs(100)) && readers.valid(8, UnixMs(100)));
        let over = readers.expire(UnixMs(100));
        assert_eq!(over.iter().map(Holder::owner).collect::<Vec<_>>(), [b"ann"]);
        assert!(readers.expire(UnixMs(300)).is_empty(), "the last one stays: the lock is free then");
        assert_eq!(readers.release(b"ann", None, None), (Released::NotHolder, None));
        assert_eq!(readers.release(b"bob", Some(8), Some(UnixMs(199))).0, Released::Last);
    }

    #[test]
    fn out_of_range_parts_make_no_holder() {
        let long = vec![b'x'; MAX_OWNER + 1];
        assert!(Holder::new(&long[1..], GOOD).is_some());
        assert!(Holder::new(&long, GOOD).is_none());
        assert!(Holder::new(b"", GOOD).is_none());
        for standing in [
            Standing { token: 0, ..GOOD },
            Standing { token: 1 << 53, ..GOOD },
            Standing { holds: 0, ..GOOD },
            Standing { deadline: UnixMs(0), ..GOOD },
            Standing { deadline: UnixMs(-1), ..GOOD },
            Standing { keys: 0, ..GOOD },
        ] {
            assert!(Holder::new(b"ann", standing).is_none(), "{standing:?}");
        }
        assert!(Record::new(Mode::Permits(0), holder("ann", 7)).is_none());
        assert!(Record::new(Mode::Permits(MAX_PERMITS + 1), holder("ann", 7)).is_none());
    }

    #[test]
    fn a_dump_comes_back_and_nothing_else_is_taken() {
        for mode in [Mode::Exclusive, Mode::Shared, Mode::Permits(2)] {
            let mut record = record(mode);
            if mode != Mode::Exclusive {
                record.put(holder("bob", 8)).unwrap();
            }
            let dump = record.encode(Vec::new());
            assert_eq!(Record::decode(&dump), Some(record));
            assert_eq!(Record::decode(&[&dump[..], &[0]].concat()), None);
            for len in 0..dump.len() {
                assert_eq!(Record::decode(&dump[..len]), None, "{len} bytes");
            }
        }
    }

    #[test]
    fn a_dump_with_too_many_holders_or_the_same_twice_or_in_disorder_is_refused() {
        let first = holder("ann", 7);
        for (mode, second) in [
            (Mode::Exclusive, holder("bob", 8)),
            (Mode::Permits(1), holder("bob", 8)),
            (Mode::Shared, holder("bob", 7)),
            (Mode::Shared, holder("ann", 8)),
            (Mode::Shared, holder("bob", 6)),
        ] {
            let stored = vec![StoredHolder::of(&first), StoredHolder::of(&second)];
            let unsound = postcard::to_extend(&(mode, stored), Vec::new()).unwrap();
            assert_eq!(Record::decode(&unsound), None, "{mode:?}");
        }
    }
}
