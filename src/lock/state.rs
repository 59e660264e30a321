//! The lock family's memory.

use crate::clock::UnixMs;
use crate::state::{Aftermath, KeyEvent};

#[derive(Debug, Default)]
pub struct State {}

impl State {
    pub fn flushed(&mut self, _db: Option<usize>) {}

    pub fn swapped(&mut self, _a: usize, _b: usize) {}

    pub fn key_event(&mut self, _: KeyEvent, _db: usize, _key: &[u8], _now: UnixMs, _replayed: bool) -> Aftermath {
        Aftermath::Nothing
    }

    pub fn loaded(&mut self) {}

    pub fn promoted(&mut self) {}

    pub fn sweep(&mut self, _now: UnixMs, _budget: usize) {}

    pub fn save(&self, _emit: &mut dyn FnMut(u64, &[u8])) {}

    pub fn load(&mut self, _kind: u64, _bytes: &[u8]) -> Option<()> {
        Some(())
    }

    pub fn limbo_len(&self) -> usize {
        0
    }
}
