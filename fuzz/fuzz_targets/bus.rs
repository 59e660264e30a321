//! Messages as they come over the cluster bus.
#![no_main]

#[path = "../driver.rs"]
mod driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| driver::receive(input));
