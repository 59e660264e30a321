//! The cache family's memory: one index of tags and one of version floors for each database.

use crate::clock::UnixMs;
use crate::config::Config;
use crate::state::KeyEvent;

#[derive(Debug, Default)]
pub struct State {}

impl State {
    pub fn key_event(&mut self, _config: &Config, _event: KeyEvent, _db: usize, _key: &[u8], _now: UnixMs) {}

    pub fn key_moved(&mut self, _config: &Config, _from: (usize, &[u8]), _to: (usize, &[u8]), _now: UnixMs) {}

    pub fn flushed(&mut self, _db: Option<usize>) {}

    pub fn swapped(&mut self, _a: usize, _b: usize) {}

    pub fn loaded(&mut self) {}

    pub fn config_changed(&mut self, _config: &Config) {}

    pub fn sweep(&mut self, _config: &Config, _now: UnixMs, _budget: usize) {}

    pub fn save(&self, _emit: &mut dyn FnMut(u64, &[u8])) {}

    pub fn load(&mut self, _config: &Config, _kind: u64, _bytes: &[u8], _now: UnixMs) -> Option<()> {
        Some(())
    }

    pub fn has_retired(&self) -> bool {
        false
    }
}
