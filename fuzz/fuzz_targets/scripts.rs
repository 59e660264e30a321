//! Commands as clients send them: the argument parsers, and what the commands do then.
#![no_main]

#[path = "../driver.rs"]
mod driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| driver::run_script(input));
