//! What of this family is replicated by KEYWARD.APPLY. A meter is `SLIDING window_ms`, `GCRA window_ms rate` or `FIXED window_ms`:
//!
//! - `CHARGE key meter [meter ...] unix_us units`: so much was admitted
//! - `SETBACK key meter [meter ...] unix_us`: the clock was set back to this moment
//! - `REFUND key meter [meter ...] unix_us units`: so much was given back
//! - `BAN key until_ms`: everything is denied until then
//!
//! The moment is the primary's. All of it is arithmetic on the state and these numbers, so a replica reaches the same
//! state and is not sent it.

use smallvec::{SmallVec, smallvec};

use crate::args::{Arg, Args};
use crate::clock::{UnixMs, UnixUs};
use crate::error::Error;
use crate::ratelimit::MAX_UNITS;
use crate::ratelimit::decision::Meters;
use crate::ratelimit::limit::MAX_LIMITS;
use crate::ratelimit::limiter::Limiter;
use crate::ratelimit::meter::{Algorithm, Meter};
use crate::server::{Server, Word};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Charge { meters: Meters, now: UnixUs, units: i64 },
    SetBack { meters: Meters, now: UnixUs },
    Refund { meters: Meters, now: UnixUs, units: i64 },
    Ban { until: UnixMs },
}

impl Effect {
    /// Changes the limiter; the key's new expiry, if the limiter is full at another moment now. An error changes nothing.
    pub fn apply_to(&self, limiter: &mut Limiter) -> Result<Option<UnixMs>, Error> {
        let before = limiter.full_at();
        match self {
            Effect::Charge { meters, now, units } => limiter.charge(meters, *now, *units)?,
            Effect::SetBack { meters, now } => limiter.set_back(meters, *now),
            Effect::Refund { meters, now, units } => limiter.refund(meters, *now, *units),
            Effect::Ban { until } => limiter.ban(*until),
        }
        let after = limiter.full_at();
        Ok((after != before).then(|| after.to_ms_up()))
    }

    /// Can it make a limiter where there is none?
    fn creates(&self) -> bool {
        matches!(self, Effect::Charge { .. } | Effect::Ban { .. })
    }

    #[inline]
    pub fn replicate<S: Server>(&self, key: Arg<'_>, server: &mut S) {
        if server.has_audience() {
            self.send(key, server);
        } else {
            server.replicate_verbatim();
        }
    }

    #[inline(never)]
    fn send<S: Server>(&self, key: Arg<'_>, server: &mut S) {
        let (name, meters, numbers): (_, &[Meter], SmallVec<[i64; 2]>) = match self {
            Effect::Charge { meters, now, units } => ("CHARGE", meters, smallvec![now.0, *units]),
            Effect::SetBack { meters, now } => ("SETBACK", meters, smallvec![now.0]),
            Effect::Refund { meters, now, units } => ("REFUND", meters, smallvec![now.0, *units]),
            Effect::Ban { until } => ("BAN", &[], smallvec![until.0]),
        };
        let mut words: SmallVec<[Word<'_>; 8]> = smallvec![Word::Text(name), Word::Arg(key)];
        for word in meters.iter().flat_map(|meter| meter.words()) {
            words.push(word);
        }
        words.extend(numbers.iter().map(|number| Word::Int(*number)));
        server.replicate("KEYWARD.APPLY", &words);
    }
}

/// Applies `effect` if it is one of this family's; `None` if it is not.
pub fn apply<S: Server>(effect: Arg<'_>, args: &mut Args<'_>, server: &mut S) -> Option<Result<(), Error>> {
    let parse: fn(&mut Args<'_>) -> Result<Effect, Error> = match () {
        () if effect.is("CHARGE") => |args| {
            let (meters, now) = metered(args)?;
            Ok(Effect::Charge { meters, now, units: units(args)? })
        },
        () if effect.is("SETBACK") => |args| {
            let (meters, now) = metered(args)?;
            Ok(Effect::SetBack { meters, now })
        },
        () if effect.is("REFUND") => |args| {
            let (meters, now) = metered(args)?;
            Ok(Effect::Refund { meters, now, units: units(args)? })
        },
        () if effect.is("BAN") => |args| {
            let until = UnixMs(number(args)?);
            if until.0 > 0 { Ok(Effect::Ban { until }) } else { Err(Error::BadEffect) }
        },
        () => return None,
    };
    let key = match args.take() {
        Some(key) => key,
        None => return Some(Err(Error::BadEffect)),
    };
    let parsed = parse(args).and_then(|effect| args.end().map_err(|_| Error::BadEffect).map(|()| effect));
    Some(parsed.and_then(|effect| apply_to_key(&effect, key, server)))
}

/// `meter [meter ...] unix_us`
fn metered(args: &mut Args<'_>) -> Result<(Meters, UnixUs), Error> {
    let mut meters = Meters::new();
    while let Some(algorithm) = args.peek().and_then(Algorithm::named) {
        args.take();
        let meter = Meter::parse(algorithm, args)?;
        if meters.len() == MAX_LIMITS || meters.iter().any(|other| other.is_alike(meter)) {
            return Err(Error::BadEffect);
        }
        meters.push(meter);
    }
    if meters.is_empty() {
        return Err(Error::BadEffect);
    }
    Ok((meters, UnixUs(number(args)?)))
}

fn number(args: &mut Args<'_>) -> Result<i64, Error> {
    args.take().ok_or(Error::BadEffect)?.int().map_err(|_| Error::BadEffect)
}

fn units(args: &mut Args<'_>) -> Result<i64, Error> {
    number(args).and_then(|units| if (1..=MAX_UNITS).contains(&units) { Ok(units) } else { Err(Error::BadEffect) })
}

fn apply_to_key<S: Server>(effect: &Effect, key: Arg<'_>, server: &mut S) -> Result<(), Error> {
    match server.native::<Limiter>(key)? {
        Some(limiter) => {
            let expiry = effect.apply_to(limiter)?;
            let is_empty = limiter.is_empty();
            changed(server, key, is_empty, expiry);
        }
        None if effect.creates() => {
            let mut limiter = Limiter::default();
            let expiry = effect.apply_to(&mut limiter)?;
            server.put_native(key, limiter, expiry);
        }
        None => return Err(Error::BadEffect),
    }
    Ok(())
}

/// The limiter of this key was changed in place. One in which nothing is left goes.
pub fn changed<S: Server>(server: &mut S, key: Arg<'_>, is_empty: bool, expiry: Option<UnixMs>) {
    if is_empty {
        server.delete(key);
        return;
    }
    server.changed(key);
    if expiry.is_some() {
        server.set_expiry(key, expiry);
    }
}

#[cfg(test)]
mod tests {
    use crate::apply::Apply;
    use crate::error::Error;
    use crate::fake_server::FakeServer;
    use crate::reply::Reply;

    /// All that an operator, a broken link or a forged file may send.
    #[test]
    fn malformed_effects_are_refused_and_change_nothing() {
        let mut server = FakeServer::new();
        server.put_string("s", "v");
        for effect in [
            "CHARGE",
            "CHARGE k",
            "CHARGE k 1 1",
            "CHARGE k SLIDING 1000 1",
            "CHARGE k TOKENS 1000 1 1",
            "CHARGE k SLIDING 1000 1 1 1",
            "CHARGE k SLIDING 0 1 1",
            "CHARGE k SLIDING 1000000000001 1 1",
            "CHARGE k SLIDING 1000 9223372036854775808 1",
            "CHARGE k SLIDING 1000 1 0",
            "CHARGE k SLIDING 1000 1 -1",
            "CHARGE k SLIDING 1000 1 1000000000001",
            "CHARGE k SLIDING x 1 1",
            "CHARGE k SLIDING 1000 SLIDING 1000 1 1",
            "CHARGE k GCRA 1000 0 1 1",
            "CHARGE k GCRA 1000 1000000000001 1 1",
            "CHARGE k GCRA 1000 5 GCRA 1000 6 1 1",
            "CHARGE k FIXED 0 1 1",
            "SETBACK k SLIDING 1000 1",
            "SETBACK k SLIDING 1000 1 1",
            "REFUND k SLIDING 1000 1 1",
            "REFUND k SLIDING 1000 1",
            "BAN k",
            "BAN k 0",
            "BAN k -1",
            "BAN k x",
            "BAN k 1 1",
        ] {
            assert_eq!(server.call::<Apply>(&format!("KEYWARD.APPLY {effect}")), Err(Error::BadEffect), "{effect}");
        }
        let nine: String = (1..=9).map(|ms| format!(" FIXED {ms}")).collect();
        assert_eq!(server.call::<Apply>(&format!("KEYWARD.APPLY CHARGE k{nine} 1 1")), Err(Error::BadEffect));
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY CHARGE s SLIDING 1000 1 1"), Err(Error::WrongType));
        assert_eq!(server.keys.len(), 1);
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn charges_beyond_what_any_limit_allows_are_refused() {
        for meter in ["SLIDING 1000", "GCRA 1000 1", "FIXED 1000"] {
            let mut server = FakeServer::new();
            server.replayed = true;
            let mut apply = |effect: &str| server.call::<Apply>(&format!("KEYWARD.APPLY {effect}")).map(|_| ());
            assert_eq!(apply(&format!("CHARGE k {meter} 7 1000000000000")), Ok(()));
            assert_eq!(apply(&format!("CHARGE k {meter} 7 1")), Err(Error::BadEffect));
            assert_eq!(apply(&format!("CHARGE k FIXED 5 {meter} 7 1")), Err(Error::BadEffect));
            assert_eq!(apply(&format!("SETBACK k {meter} 0")), Ok(()));
            assert_eq!(apply(&format!("REFUND k {meter} 0 1000000000000")), Ok(()));
            assert!(server.keys.is_empty());
        }
        let mut server = FakeServer::new();
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY BAN k 1800000000000"), Ok(Reply::Ok));
        assert_eq!(server.key_expiry("k").unwrap().0, 1_800_000_000_000);
    }
}
