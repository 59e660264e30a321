//! A cohort: the unordered list of the records that carry a tag, until an invalidation takes it off the tag.
//!
//! Each record knows its position in the list, so joining and leaving are O(1): the last member takes the place of the
//! one that leaves. The first members are one small vector; beyond that the list grows in chunks that never move. (One
//! vector of five million members stalls 31 ms when it doubles, and again when it is freed.) An intrusive linked list
//! would take four bytes less an entry, but gives SCAN no stable cursor.

use smallvec::SmallVec;

/// `head` holds this many, each chunk of `rest` as many again.
const CHUNK: usize = 1024;

#[derive(Debug)]
pub(super) struct Cohort {
    pub tag: u32,
    /// The number of the retirement that took this cohort off its tag; 0: it is the tag's current cohort.
    pub retirement: u64,
    head: SmallVec<[u32; 4]>,
    /// Boxed: 16 bytes less for each of the many small cohorts.
    rest: Option<Box<Rest>>,
}

/// All chunks but the last are full, none is empty.
#[derive(Debug, Default)]
struct Rest {
    chunks: Vec<Vec<u32>>,
}

impl Cohort {
    pub fn new(tag: u32, retirement: u64) -> Cohort {
        Cohort { tag, retirement, head: SmallVec::new(), rest: None }
    }

    pub fn len(&self) -> usize {
        self.head.len() + self.rest.as_ref().map_or(0, |rest| rest.len())
    }

    pub fn is_empty(&self) -> bool {
        self.head.is_empty()
    }

    pub fn get(&self, position: usize) -> Option<u32> {
        match position.checked_sub(CHUNK) {
            None => self.head.get(position).copied(),
            Some(beyond) => self.rest.as_ref()?.chunks.get(beyond / CHUNK)?.get(beyond % CHUNK).copied(),
        }
    }

    /// Sets the member at `position`: its record got another id.
    pub fn set(&mut self, position: u32, record: u32) {
        let position = position as usize;
        let place = match position.checked_sub(CHUNK) {
            None => self.head.get_mut(position),
            Some(beyond) => {
                self.rest.as_mut().and_then(|rest| rest.chunks.get_mut(beyond / CHUNK)?.get_mut(beyond % CHUNK))
            }
        };
        if let Some(place) = place {
            *place = record;
        }
    }

    /// Adds a member and returns its position.
    pub fn push(&mut self, record: u32) -> u32 {
        let position = self.len() as u32;
        if self.head.len() < CHUNK {
            if self.head.len() == self.head.capacity() {
                // A quarter more: a third of the slack of doubling, and what malloc's size classes are apart.
                self.head.grow((self.head.len() + (self.head.len() / 4).max(4)).min(CHUNK));
            }
            self.head.push(record);
        } else {
            self.rest.get_or_insert_default().push(record);
        }
        position
    }

    /// Takes out the member at `position`, which must be one. The last member moves there; its record is returned, to be
    /// told.
    pub fn swap_remove(&mut self, position: u32) -> Option<u32> {
        let last = match &mut self.rest {
            Some(rest) => {
                let last = rest.pop();
                if rest.chunks.is_empty() {
                    self.rest = None;
                }
                last
            }
            None => {
                let last = self.head.pop();
                if self.head.spilled() && self.head.len() <= self.head.capacity() / 2 {
                    shrink(&mut self.head);
                }
                last
            }
        }?;
        if position as usize >= self.len() {
            return None;
        }
        self.set(position, last);
        Some(last)
    }

    /// Bytes of memory held beyond this struct.
    pub fn heap(&self) -> usize {
        let head = if self.head.spilled() { self.head.capacity() * size_of::<u32>() } else { 0 };
        head + self.rest.as_ref().map_or(0, |rest| rest.heap())
    }
}

/// Leaves a quarter of slack, so that a member more and a member less do not copy each time.
fn shrink(head: &mut SmallVec<[u32; 4]>) {
    let mut smaller = SmallVec::new();
    let wanted = head.len() + head.len() / 4;
    if wanted > smaller.inline_size() {
        smaller.reserve_exact(wanted);
    }
    smaller.extend_from_slice(head);
    *head = smaller;
}

impl Rest {
    fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    fn push(&mut self, record: u32) {
        match self.chunks.last_mut() {
            Some(last) if last.len() < CHUNK => last.push(record),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(record);
                self.chunks.push(chunk);
            }
        }
    }

    fn pop(&mut self) -> Option<u32> {
        let chunk = self.chunks.last_mut()?;
        let record = chunk.pop();
        if chunk.is_empty() {
            self.chunks.pop();
            if self.chunks.len() * 4 < self.chunks.capacity() {
                self.chunks.shrink_to(self.chunks.len() * 2);
            }
        }
        record
    }

    fn heap(&self) -> usize {
        size_of::<Rest>()
            + self.chunks.capacity() * size_of::<Vec<u32>>()
            + self.chunks.len() * CHUNK * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_hold_across_chunks() {
        let mut cohort = Cohort::new(0, 0);
        for record in 0..5_000 {
            assert_eq!(cohort.push(record), record);
        }
        assert_eq!((cohort.len(), cohort.get(1_023), cohort.get(4_999)), (5_000, Some(1_023), Some(4_999)));
        assert_eq!(cohort.swap_remove(10), Some(4_999));
        assert_eq!(cohort.swap_remove(4_998), None, "the last member moves nobody");
        assert_eq!((cohort.get(10), cohort.get(4_998), cohort.len()), (Some(4_999), None, 4_998));
        cohort.set(2_000, 77);
        assert_eq!(cohort.get(2_000), Some(77));
    }

    #[test]
    fn memory_goes_with_the_members() {
        let mut cohort = Cohort::new(0, 0);
        for record in 0..100_000 {
            cohort.push(record);
        }
        let full = cohort.heap();
        assert!(full < 100_000 * 9 / 2);
        for _ in 0..90_000 {
            cohort.swap_remove(0);
        }
        assert!(cohort.heap() < full / 8);
        for _ in 0..10_000 {
            cohort.swap_remove(0);
        }
        assert_eq!((cohort.heap(), cohort.is_empty()), (0, true));
    }
}
