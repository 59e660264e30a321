//! Byte records of any length behind 32-bit ids, in pages by size class.
//!
//! Millions of records of some 50 bytes want neither a 16-byte allocator header each nor an 8-byte pointer for each
//! reference. A page of 64 KiB holds slots of one size, and an id is the page's number and the slot's. A page whose last
//! record goes is given back to the allocator, so that churn of one size leaves no memory behind for another. (One arena
//! of mixed sizes with free lists was rejected for that reason: it never shrinks.)
//!
//! Free slots are linked through themselves. The first byte of a free slot is 0, and so **a record's first byte must not
//! be 0**: it is how the walks tell records from holes.

use std::collections::BTreeSet;

const PAGE_BYTES: usize = 64 * 1024;
const SLOT_BITS: u32 = 12;
const MAX_PAGES: usize = 1 << (32 - SLOT_BITS);
/// Slots of 16 bytes and more: 4096 of them fill a page, which is what an id can tell apart.
const MIN_SLOT: usize = PAGE_BYTES >> SLOT_BITS;
/// Longer records get a page of their own, of exactly their length.
const MAX_SLOT: usize = PAGE_BYTES / 8;
/// Up to here slot sizes are multiples of 8; above, of an eighth of the power of two below.
const FINE_SLOTS: usize = 512;
const CLASSES: usize = FINE_SLOTS / 8 + 8 * (MAX_SLOT / FINE_SLOTS).ilog2() as usize + 1;

/// No id is left, or a length does not fit its field. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Debug)]
pub(super) struct Slab {
    pages: Vec<Page>,
    /// Numbers of the pages that hold nothing.
    vacant: Vec<u32>,
    /// By class: the pages with a free slot. The lowest is filled first, which drains the high ones.
    open: Vec<BTreeSet<u32>>,
    page_bytes: usize,
}

#[derive(Debug, Default)]
struct Page {
    bytes: Vec<u8>,
    slot_size: usize,
    /// 1 + the first slot of the free list; 0: the list is empty.
    free: u16,
    live: u16,
}

impl Default for Slab {
    fn default() -> Slab {
        Slab { pages: Vec::new(), vacant: Vec::new(), open: vec![BTreeSet::new(); CLASSES], page_bytes: 0 }
    }
}

impl Slab {
    /// A slot of at least `len` bytes, whose content the caller sets at once. O(log pages).
    pub fn allocate(&mut self, len: usize) -> Result<u32, Full> {
        let size = slot_size(len);
        if size > MAX_SLOT {
            let number = self.vacant_page(size)?;
            self.page_bytes += size;
            if let Some(page) = self.pages.get_mut(number as usize) {
                page.bytes = vec![0; size];
                page.live = 1;
            }
            return Ok(number << SLOT_BITS);
        }
        let class = class_of(size);
        let number = match self.open.get(class).and_then(BTreeSet::first) {
            Some(&number) => number,
            None => {
                let number = self.vacant_page(size)?;
                self.open.get_mut(class).ok_or(Full)?.insert(number);
                number
            }
        };
        let page = self.pages.get_mut(number as usize).ok_or(Full)?;
        let before = page.bytes.capacity();
        let slot = page.take_slot();
        self.page_bytes += page.bytes.capacity() - before;
        if page.is_full() {
            self.open.get_mut(class).ok_or(Full)?.remove(&number);
        }
        Ok(number << SLOT_BITS | slot)
    }

    /// Whether a record of `len` bytes belongs into the slot that `id` has.
    pub fn fits(&self, id: u32, len: usize) -> bool {
        self.pages.get(page_number(id)).is_some_and(|page| page.slot_size == slot_size(len))
    }

    /// The whole slot: the record and what was rounded up. Empty for an id that was never given out.
    pub fn get(&self, id: u32) -> &[u8] {
        self.pages.get(page_number(id)).and_then(|page| page.bytes.get(page.range(id))).unwrap_or_default()
    }

    pub fn get_mut(&mut self, id: u32) -> &mut [u8] {
        self.pages
            .get_mut(page_number(id))
            .and_then(|page| {
                let range = page.range(id);
                page.bytes.get_mut(range)
            })
            .unwrap_or_default()
    }

    pub fn free(&mut self, id: u32) {
        let number = page_number(id) as u32;
        let Some(page) = self.pages.get_mut(page_number(id)) else { return };
        let class = class_of(page.slot_size);
        let was_full = page.is_full();
        if page.live > 1 {
            page.give_back(id);
            if was_full && let Some(open) = self.open.get_mut(class) {
                open.insert(number);
            }
            return;
        }
        self.page_bytes -= page.bytes.capacity();
        *page = Page::default();
        if let Some(open) = self.open.get_mut(class) {
            open.remove(&number);
        }
        self.vacant.push(number);
        if self.vacant.len() == self.pages.len() {
            (self.pages, self.vacant) = (Vec::new(), Vec::new());
        }
    }

    /// The records with an id of at least `from`, by id. Costs a look at each hole between them.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = (u32, &[u8])> {
        (page_number(from)..).zip(self.pages.iter().skip(page_number(from))).flat_map(move |(number, page)| {
            let first = (number as u32) << SLOT_BITS;
            let skipped = if number == page_number(from) { from - first } else { 0 };
            page.bytes
                .chunks_exact(page.slot_size.max(1))
                .zip(first..)
                .skip(skipped as usize)
                .filter(|(slot, _)| slot.first().is_some_and(|&byte| byte != 0))
                .map(|(slot, id)| (id, slot))
        })
    }

    /// Bytes of memory held, not counting this struct.
    pub fn memory(&self) -> usize {
        self.page_bytes + self.pages.capacity() * size_of::<Page>() + self.vacant.capacity() * size_of::<u32>()
    }

    /// The number of an empty page, set up for slots of `size`.
    ///
    /// `pages` may double in one go: a million records take some 800 pages of 40 bytes each, too few to stall.
    fn vacant_page(&mut self, size: usize) -> Result<u32, Full> {
        let number = match self.vacant.pop() {
            Some(number) => number,
            None if self.pages.len() < MAX_PAGES => {
                self.pages.push(Page::default());
                self.pages.len() as u32 - 1
            }
            None => return Err(Full),
        };
        if let Some(page) = self.pages.get_mut(number as usize) {
            page.slot_size = size;
        }
        Ok(number)
    }
}

impl Page {
    fn range(&self, id: u32) -> std::ops::Range<usize> {
        let slot = id as usize & ((1 << SLOT_BITS) - 1);
        slot * self.slot_size..(slot + 1) * self.slot_size
    }

    fn is_full(&self) -> bool {
        self.free == 0 && self.bytes.len() + self.slot_size > PAGE_BYTES
    }

    fn take_slot(&mut self) -> u32 {
        self.live += 1;
        if self.free != 0 {
            let slot = u32::from(self.free) - 1;
            let range = self.range(slot);
            let next = self.bytes.get(range).and_then(|slot| Some([*slot.get(1)?, *slot.get(2)?]));
            self.free = u16::from_le_bytes(next.unwrap_or_default());
            return slot;
        }
        let len = self.bytes.len();
        if self.bytes.capacity() - len < self.slot_size {
            // A small index must not pay for whole pages; doubling within 64 KiB is no stall.
            let all = PAGE_BYTES / self.slot_size * self.slot_size;
            self.bytes.reserve_exact((2 * len).clamp(4 * self.slot_size, all) - len);
        }
        self.bytes.resize(len + self.slot_size, 0);
        (len / self.slot_size) as u32
    }

    fn give_back(&mut self, id: u32) {
        let range = self.range(id);
        let slot = (id & ((1 << SLOT_BITS) - 1)) as u16;
        let [low, high] = self.free.to_le_bytes();
        if let Some([mark, next_low, next_high, ..]) = self.bytes.get_mut(range) {
            (*mark, *next_low, *next_high) = (0, low, high);
            self.free = slot + 1;
            self.live -= 1;
        }
    }
}

fn page_number(id: u32) -> usize {
    (id >> SLOT_BITS) as usize
}

/// `len` rounded up to its class; waste is at most 7 bytes up to 512, an eighth above.
fn slot_size(len: usize) -> usize {
    match len {
        0..=FINE_SLOTS => len.next_multiple_of(8).max(MIN_SLOT),
        _ if len <= MAX_SLOT => len.next_multiple_of(len.next_power_of_two() / 16),
        _ => len,
    }
}

fn class_of(size: usize) -> usize {
    if size <= FINE_SLOTS {
        return size / 8;
    }
    let octave = (size - 1).ilog2() - FINE_SLOTS.ilog2();
    let eighth = (size - 1) >> ((size - 1).ilog2() - 3) & 7;
    FINE_SLOTS / 8 + 1 + 8 * octave as usize + eighth
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(slab: &mut Slab, len: usize, byte: u8) -> u32 {
        let id = slab.allocate(len).unwrap();
        slab.get_mut(id)[..len].fill(byte);
        id
    }

    #[test]
    fn classes_are_distinct_and_waste_at_most_an_eighth() {
        let mut sizes = BTreeSet::new();
        for len in 1..=MAX_SLOT {
            let size = slot_size(len);
            assert!(size >= len && size <= MAX_SLOT && slot_size(size) == size, "{len} -> {size}");
            assert!(size - len <= (len / 8).max(7) || size == MIN_SLOT, "{len} -> {size}");
            sizes.insert(size);
        }
        let classes: BTreeSet<usize> = sizes.iter().map(|&size| class_of(size)).collect();
        assert_eq!(classes.len(), sizes.len());
        assert!(classes.last() < Some(&CLASSES));
    }

    #[test]
    fn records_of_all_lengths_keep_their_bytes() {
        let mut slab = Slab::default();
        let lens = [1, 13, 48, 511, 513, 8192, 8193, 300_000];
        let ids: Vec<u32> = (1..).zip(lens).map(|(byte, len)| fill(&mut slab, len, byte)).collect();
        for ((byte, len), &id) in (1u8..).zip(lens).zip(&ids) {
            assert!(slab.get(id)[..len].iter().all(|&b| b == byte));
        }
        assert_eq!(slab.iter_from(0).map(|(id, _)| id).collect::<Vec<_>>(), ids);
        assert_eq!(slab.iter_from(ids[3] + 1).count(), 4);
    }

    #[test]
    fn freed_slots_are_used_again_and_empty_pages_released() {
        let mut slab = Slab::default();
        let ids: Vec<u32> = (0..10_000).map(|_| fill(&mut slab, 48, 1)).collect();
        let full = slab.memory();
        for &id in &ids[..5_000] {
            slab.free(id);
        }
        assert!(slab.memory() < full * 6 / 10, "{} of {full}", slab.memory());
        assert_eq!(slab.iter_from(0).count(), 5_000);
        let again: Vec<u32> = (0..5_000).map(|_| fill(&mut slab, 48, 2)).collect();
        assert!(slab.memory() <= full + full / 100);
        for id in again.into_iter().chain(ids[5_000..].iter().copied()) {
            slab.free(id);
        }
        assert_eq!(slab.memory(), 0);
    }

    #[test]
    fn exhausted_pages_are_an_error() {
        let mut slab = Slab::default();
        slab.pages.resize_with(MAX_PAGES, Page::default);
        assert_eq!(slab.allocate(48), Err(Full));
        assert_eq!(slab.allocate(100_000), Err(Full));
    }
}
