//! Slots in the order in which their leases end, of which one can ask how many are over, and when the n-th ends.
//!
//! A list of sorted chunks. An entry is found by binary search, and counting walks over the sizes of the chunks: at most some
//! thousands for a million slots, and one for what is usual. The trees of the standard library do not count.
//!
//! Invariants: no chunk is empty or longer than [`CHUNK`], and two neighbours together have more than half of that.

use smallvec::SmallVec;
use std::mem::size_of;

use crate::clock::UnixMs;
use crate::ratelimit::concurrency::Id;

const CHUNK: usize = 512;

type Entry = (UnixMs, Id);

#[derive(Clone, Debug, Default)]
pub struct Deadlines {
    chunks: Vec<Vec<Entry>>,
}

impl Deadlines {
    /// Takes entries in any order.
    pub fn of(mut entries: Vec<Entry>) -> Deadlines {
        entries.sort_unstable();
        Deadlines { chunks: entries.chunks(CHUNK).map(<[Entry]>::to_vec).collect() }
    }

    pub fn insert(&mut self, deadline: UnixMs, id: Id) {
        let entry = (deadline, id);
        let at = self.chunk_of(&entry);
        let Some(chunk) = self.chunks.get_mut(at) else { return self.append(entry) };
        chunk.insert(chunk.partition_point(|other| *other < entry), entry);
        if chunk.len() > CHUNK {
            let second = chunk.split_off(CHUNK / 2);
            self.chunks.insert(at + 1, second);
        }
    }

    /// Leases of one length end in the order in which they began: those chunks are filled to the brim.
    fn append(&mut self, entry: Entry) {
        match self.chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(entry),
            _ => self.chunks.push(vec![entry]),
        }
    }

    pub fn remove(&mut self, deadline: UnixMs, id: &Id) {
        let entry = (deadline, Id::clone(id));
        let at = self.chunk_of(&entry);
        let Some(chunk) = self.chunks.get_mut(at) else { return };
        if let Ok(position) = chunk.binary_search(&entry) {
            chunk.remove(position);
            self.shrunk(at);
        }
    }

    /// Takes out the first of those that are over, at most `most`, and not always that many.
    pub fn take_over(&mut self, now: UnixMs, most: usize) -> SmallVec<[Entry; 4]> {
        let Some(chunk) = self.chunks.first_mut() else { return SmallVec::new() };
        let over = over_in(chunk, now).min(most);
        let taken: SmallVec<[Entry; 4]> = chunk.drain(..over).collect();
        if over > 0 {
            self.shrunk(0);
        }
        taken
    }

    /// The first chunk whose last entry does not come before this one.
    fn chunk_of(&self, entry: &Entry) -> usize {
        self.chunks.partition_point(|chunk| chunk.last().is_some_and(|last| last < entry))
    }

    /// Entries have left this chunk.
    fn shrunk(&mut self, at: usize) {
        if self.chunks.get(at).is_some_and(Vec::is_empty) {
            self.chunks.remove(at);
        } else {
            self.merge(at);
        }
        self.merge(at.wrapping_sub(1));
    }

    /// Makes one chunk of this and the next, if both are there and small.
    fn merge(&mut self, at: usize) {
        let next = at.wrapping_add(1);
        let size = |at: usize| self.chunks.get(at).map(Vec::len);
        if let (Some(first), Some(second)) = (size(at), size(next))
            && first + second <= CHUNK / 2
        {
            let second = self.chunks.remove(next);
            if let Some(first) = self.chunks.get_mut(at) {
                first.extend(second);
            }
        }
    }

    /// How many are over.
    pub fn over(&self, now: UnixMs) -> usize {
        let whole = self.chunks.partition_point(|chunk| chunk.last().is_some_and(|(deadline, _)| *deadline <= now));
        let before: usize = self.chunks.iter().take(whole).map(Vec::len).sum();
        before + self.chunks.get(whole).map_or(0, |chunk| over_in(chunk, now))
    }

    /// When the n-th ends, counted from 0.
    pub fn nth(&self, n: usize) -> Option<UnixMs> {
        let mut left = n;
        for chunk in &self.chunks {
            match chunk.get(left) {
                Some((deadline, _)) => return Some(*deadline),
                None => left -= chunk.len(),
            }
        }
        None
    }

    pub fn last(&self) -> Option<UnixMs> {
        self.chunks.last().and_then(|chunk| chunk.last()).map(|(deadline, _)| *deadline)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.chunks.iter().flatten()
    }

    pub fn heap_bytes(&self) -> usize {
        let entries: usize = self.chunks.iter().map(Vec::capacity).sum();
        entries * size_of::<Entry>() + self.chunks.capacity() * size_of::<Vec<Entry>>()
    }
}

fn over_in(chunk: &[Entry], now: UnixMs) -> usize {
    chunk.partition_point(|(deadline, _)| *deadline <= now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(i64, u16),
        /// The entry at this share of all.
        Remove(u16),
        /// Many at once, from this share on.
        RemoveRun(u16, usize),
        TakeOver(i64, usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0..400i64, any::<u16>()).prop_map(|(at, id)| Op::Insert(at, id)),
            3 => any::<u16>().prop_map(Op::Remove),
            1 => (any::<u16>(), 0..900usize).prop_map(|(at, n)| Op::RemoveRun(at, n)),
            1 => (0..400i64, 0..40usize).prop_map(|(at, n)| Op::TakeOver(at, n)),
        ]
    }

    fn entry(at: i64, id: u16) -> Entry {
        (UnixMs(at), Id::from(id.to_be_bytes().as_slice()))
    }

    fn assert_same(deadlines: &Deadlines, model: &[Entry]) {
        assert!(deadlines.iter().eq(model));
        let sizes: Vec<usize> = deadlines.chunks.iter().map(Vec::len).collect();
        assert!(sizes.iter().all(|size| (1..=CHUNK).contains(size)), "{sizes:?}");
        assert!(sizes.windows(2).all(|pair| pair[0] + pair[1] > CHUNK / 2), "{sizes:?}");
        assert_eq!(deadlines.last(), model.last().map(|(at, _)| *at));
        for at in [-1, 0, 7, 200, 399, 400] {
            let over = model.iter().filter(|(deadline, _)| deadline.0 <= at).count();
            assert_eq!(deadlines.over(UnixMs(at)), over);
            assert_eq!(deadlines.nth(over), model.get(over).map(|(at, _)| *at));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn it_is_a_sorted_list(begun in 0..4000usize, random in any::<bool>(), ops in prop::collection::vec(op(), 1..200)) {
            let mut model: Vec<Entry> = (0..begun)
                .map(|n| entry(if random { n as i64 * 7919 % 400 } else { n as i64 / 10 }, n as u16))
                .collect();
            let mut deadlines = Deadlines::default();
            model.iter().for_each(|(at, id)| deadlines.insert(*at, Id::clone(id)));
            model.sort();
            assert_same(&Deadlines::of(model.clone()), &model);
            for op in ops {
                match op {
                    Op::Insert(at, id) => {
                        let new = entry(at, id);
                        if let Err(position) = model.binary_search(&new) {
                            model.insert(position, new.clone());
                            deadlines.insert(new.0, new.1);
                        }
                    }
                    Op::Remove(share) => remove(&mut deadlines, &mut model, share, 1),
                    Op::RemoveRun(share, n) => remove(&mut deadlines, &mut model, share, n),
                    Op::TakeOver(at, most) => {
                        let taken = deadlines.take_over(UnixMs(at), most);
                        assert!(taken.len() <= most);
                        let over = model.iter().filter(|(deadline, _)| deadline.0 <= at).count();
                        assert_eq!(taken.is_empty(), most.min(over) == 0);
                        assert!(model.drain(..taken.len()).eq(taken));
                    }
                }
                assert_same(&deadlines, &model);
            }
        }
    }

    fn remove(deadlines: &mut Deadlines, model: &mut Vec<Entry>, share: u16, n: usize) {
        let at = model.len() * usize::from(share) / (usize::from(u16::MAX) + 1);
        for (deadline, id) in model.drain(at..(at + n).min(model.len())) {
            deadlines.remove(deadline, &id);
            deadlines.remove(deadline, &id);
        }
    }
}
