//! The lock family's memory.

#[derive(Debug, Default)]
pub struct State {}

impl State {
    pub fn flushed(&mut self, _db: Option<usize>) {}

    pub fn swapped(&mut self, _a: usize, _b: usize) {}
}
