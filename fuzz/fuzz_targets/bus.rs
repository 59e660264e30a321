//! Bytes as they come out of RDB files and RESTORE payloads.
#![no_main]

#[path = "../driver.rs"]
mod driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| driver::receive(input));
