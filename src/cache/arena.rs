//! Values of one type behind 32-bit ids, in chunks.
//!
//! A `Vec` of five million tags would copy them all when it doubles. Here a chunk never moves once it is full, and one
//! that is empty gives its memory back.

use std::collections::BTreeSet;

use super::slab::Full;

const CHUNK_BITS: u32 = 10;
const CHUNK: usize = 1 << CHUNK_BITS;
const MAX_CHUNKS: usize = 1 << (32 - CHUNK_BITS);

#[derive(Debug)]
pub(super) struct Arena<T> {
    chunks: Vec<Chunk<T>>,
    /// The chunks with a free slot; the lowest is filled first.
    open: BTreeSet<u32>,
    len: usize,
    slots: usize,
}

#[derive(Debug)]
struct Chunk<T> {
    slots: Vec<Slot<T>>,
    /// 1 + the first slot of the free list; 0: the list is empty.
    free: u16,
    live: u16,
}

#[derive(Debug)]
enum Slot<T> {
    Used(T),
    Free { next: u16 },
}

impl<T> Default for Arena<T> {
    fn default() -> Arena<T> {
        Arena { chunks: Vec::new(), open: BTreeSet::new(), len: 0, slots: 0 }
    }
}

impl<T> Arena<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn insert(&mut self, value: T) -> Result<u32, Full> {
        let number = match self.open.first() {
            Some(&number) => number,
            None if self.chunks.len() < MAX_CHUNKS => {
                let number = self.chunks.len() as u32;
                self.chunks.push(Chunk { slots: Vec::new(), free: 0, live: 0 });
                self.open.insert(number);
                number
            }
            None => return Err(Full),
        };
        let chunk = self.chunks.get_mut(number as usize).ok_or(Full)?;
        let before = chunk.slots.capacity();
        let slot = chunk.insert(value);
        self.slots += chunk.slots.capacity() - before;
        self.len += 1;
        if chunk.live as usize == CHUNK {
            self.open.remove(&number);
        }
        Ok(number << CHUNK_BITS | slot)
    }

    pub fn get(&self, id: u32) -> Option<&T> {
        match self.chunks.get((id >> CHUNK_BITS) as usize)?.slots.get(slot_of(id))? {
            Slot::Used(value) => Some(value),
            Slot::Free { .. } => None,
        }
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        match self.chunks.get_mut((id >> CHUNK_BITS) as usize)?.slots.get_mut(slot_of(id))? {
            Slot::Used(value) => Some(value),
            Slot::Free { .. } => None,
        }
    }

    pub fn remove(&mut self, id: u32) -> Option<T> {
        let number = id >> CHUNK_BITS;
        let chunk = self.chunks.get_mut(number as usize)?;
        let value = chunk.remove(slot_of(id))?;
        self.len -= 1;
        if chunk.live == 0 {
            self.slots -= chunk.slots.capacity();
            *chunk = Chunk { slots: Vec::new(), free: 0, live: 0 };
        }
        self.open.insert(number);
        if self.len == 0 {
            *self = Arena::default();
        }
        Some(value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0u32..).zip(&self.chunks).flat_map(|(number, chunk)| {
            (number << CHUNK_BITS..).zip(&chunk.slots).filter_map(|(id, slot)| match slot {
                Slot::Used(value) => Some((id, value)),
                Slot::Free { .. } => None,
            })
        })
    }

    /// Bytes of memory held for the slots, not counting this struct and what the values own.
    pub fn memory(&self) -> usize {
        self.slots * size_of::<Slot<T>>() + self.chunks.capacity() * size_of::<Chunk<T>>()
    }
}

impl<T> Chunk<T> {
    fn insert(&mut self, value: T) -> u32 {
        self.live += 1;
        let slot = usize::from(self.free).wrapping_sub(1);
        match self.slots.get_mut(slot) {
            Some(place) => {
                if let Slot::Free { next } = *place {
                    self.free = next;
                }
                *place = Slot::Used(value);
                slot as u32
            }
            None => {
                self.slots.push(Slot::Used(value));
                self.slots.len() as u32 - 1
            }
        }
    }

    fn remove(&mut self, slot: usize) -> Option<T> {
        let place = self.slots.get_mut(slot)?;
        if let Slot::Free { .. } = place {
            return None;
        }
        let Slot::Used(value) = std::mem::replace(place, Slot::Free { next: self.free }) else { return None };
        self.free = slot as u16 + 1;
        self.live -= 1;
        Some(value)
    }
}

fn slot_of(id: u32) -> usize {
    id as usize & (CHUNK - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_valid_and_are_used_again() {
        let mut arena = Arena::default();
        let ids: Vec<u32> = (0..3_000).map(|n| arena.insert(n).unwrap()).collect();
        assert_eq!(arena.remove(ids[7]), Some(7));
        assert_eq!((arena.remove(ids[7]), arena.get(ids[7])), (None, None));
        assert_eq!(arena.insert(9_000), Ok(ids[7]));
        *arena.get_mut(ids[2_999]).unwrap() += 1;
        assert_eq!((arena.get(ids[7]), arena.get(ids[2_999])), (Some(&9_000), Some(&3_000)));
        assert_eq!((arena.len(), arena.iter().count()), (3_000, 3_000));
    }

    #[test]
    fn memory_goes_with_the_values() {
        let mut arena = Arena::default();
        let ids: Vec<u32> = (0..10_000u64).map(|n| arena.insert(n).unwrap()).collect();
        let full = arena.memory();
        for &id in &ids[..8_192] {
            arena.remove(id);
        }
        assert!(arena.memory() < full / 4);
        for &id in &ids[8_192..] {
            arena.remove(id);
        }
        assert_eq!((arena.memory(), arena.len()), (0, 0));
    }
}
