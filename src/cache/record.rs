//! The record of one key in the slab: `count u8, key length u32, (cohort u32, position u32) x count, key`, little-endian.
//! 46 bytes for a key of 25 bytes with 2 tags.

use smallvec::SmallVec;

use super::slab::Full;

const HEADER: usize = 5;
pub(super) const MAX_MEMBERSHIPS: usize = u8::MAX as usize;

/// That a record is in a cohort, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    pub cohort: u32,
    pub position: u32,
}

pub(super) type Memberships = SmallVec<[Membership; 8]>;

/// A stored record, read in place. Bytes that are no record read as one without key and memberships.
#[derive(Clone, Copy, Default)]
pub(super) struct Record<'a> {
    memberships: &'a [u8],
    pub key: &'a [u8],
}

impl<'a> Record<'a> {
    #[inline]
    pub fn read(slot: &'a [u8]) -> Record<'a> {
        Record::parse(slot).unwrap_or_default()
    }

    #[inline]
    fn parse(slot: &'a [u8]) -> Option<Record<'a>> {
        let ([count, len @ ..], rest) = slot.split_first_chunk::<HEADER>()?;
        let (memberships, rest) = rest.split_at_checked(usize::from(*count) * size_of::<Membership>())?;
        Some(Record { memberships, key: rest.get(..u32::from_le_bytes(*len) as usize)? })
    }

    #[inline]
    pub fn memberships(self) -> impl ExactSizeIterator<Item = Membership> + 'a {
        self.memberships.as_chunks().0.iter().map(|&bytes| Membership::from_bytes(bytes))
    }
}

impl Membership {
    #[inline]
    fn from_bytes(bytes: [u8; 8]) -> Membership {
        let both = u64::from_le_bytes(bytes);
        Membership { cohort: both as u32, position: (both >> 32) as u32 }
    }

    #[inline]
    fn to_bytes(self) -> [u8; 8] {
        (u64::from(self.position) << 32 | u64::from(self.cohort)).to_le_bytes()
    }
}

/// The bytes a record takes. `Full` if the key is longer than 4 GiB or there are more than 255 memberships.
pub(super) fn len(key: &[u8], memberships: usize) -> Result<usize, Full> {
    if u32::try_from(key.len()).is_err() || memberships > MAX_MEMBERSHIPS {
        return Err(Full);
    }
    Ok(HEADER + memberships * size_of::<Membership>() + key.len())
}

/// Writes a record into a slot of at least [`len`] bytes.
pub(super) fn write(slot: &mut [u8], memberships: &[Membership], key: &[u8]) {
    let Some((header, rest)) = slot.split_first_chunk_mut::<HEADER>() else { return };
    let [l0, l1, l2, l3] = (key.len() as u32).to_le_bytes();
    *header = [memberships.len() as u8, l0, l1, l2, l3];
    let Some((places, rest)) = rest.split_at_mut_checked(size_of_val(memberships)) else { return };
    for (place, membership) in places.as_chunks_mut().0.iter_mut().zip(memberships) {
        *place = membership.to_bytes();
    }
    if let Some(place) = rest.get_mut(..key.len()) {
        place.copy_from_slice(key);
    }
}

/// Tells a record that its place in `cohort` is now `position`.
pub(super) fn set_position(slot: &mut [u8], cohort: u32, position: u32) {
    let Some(([count, ..], rest)) = slot.split_first_chunk_mut::<HEADER>() else { return };
    for place in rest.as_chunks_mut().0.iter_mut().take(usize::from(*count)) {
        if Membership::from_bytes(*place).cohort == cohort {
            *place = Membership { cohort, position }.to_bytes();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_as_written() {
        let memberships = [Membership { cohort: 7, position: u32::MAX }, Membership { cohort: u32::MAX, position: 0 }];
        let len = len(b"user:1", 2).unwrap();
        let mut slot = vec![0xff; len + 3];
        write(&mut slot, &memberships, b"user:1");
        set_position(&mut slot, 7, 5);
        let record = Record::read(&slot);
        assert_eq!(record.key, b"user:1");
        let read: Vec<_> = record.memberships().collect();
        assert_eq!(read, [Membership { cohort: 7, position: 5 }, memberships[1]]);
    }

    #[test]
    fn bytes_that_are_no_record_are_an_empty_one() {
        for slot in [&[][..], &[1, 2], &[200; 20], &[0, 255, 255, 255, 255, 1]] {
            let record = Record::read(slot);
            assert_eq!((record.key, record.memberships().len()), (&[][..], 0));
        }
    }
}
