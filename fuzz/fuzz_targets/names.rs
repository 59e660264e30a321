//! Patterns of policies and keys, templates of rules and JSON.
#![no_main]

#[path = "../driver.rs"]
mod driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| driver::match_names(input));
