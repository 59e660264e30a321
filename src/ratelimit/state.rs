//! The limiter family's counters; limits themselves live in the keyspace.

#[derive(Debug, Default)]
pub struct State {}
