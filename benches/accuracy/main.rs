//! How exactly a limit holds: what each algorithm admits of the same requests beside an exact log, and the most that any true
//! window then holds.
//!
//!     cargo bench --no-default-features --bench accuracy
//!
//! Needs no server and no time: the commands run on the in-memory server of the tests, and the clock is a number. Requests
//! are drawn from a fixed seed, so the table is always the same.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

// With the server's side, and so the server's allocator, nothing here could run.
#[cfg(not(feature = "module"))]
mod algorithms;
#[cfg(not(feature = "module"))]
mod requests;
#[cfg(not(feature = "module"))]
mod table;

fn main() {
    #[cfg(not(feature = "module"))]
    table::print();
}
