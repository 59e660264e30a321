//! The one table of metrics. The INFO sections and docs/metrics.md follow it.

use crate::state::State;

/// A number in INFO, under `keyward_<name>`.
pub struct Metric {
    pub name: &'static str,
    pub summary: &'static str,
    pub kind: Kind,
    pub value: fn(&State) -> u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Grows only, from the start of the process.
    Counter,
    /// As it stands now.
    Gauge,
}

/// A section of INFO, `# keyward_<name>`.
pub struct Section {
    pub name: &'static str,
    pub metrics: &'static [Metric],
}

const fn counter(name: &'static str, summary: &'static str, value: fn(&State) -> u64) -> Metric {
    Metric { name, summary, kind: Kind::Counter, value }
}

const fn gauge(name: &'static str, summary: &'static str, value: fn(&State) -> u64) -> Metric {
    Metric { name, summary, kind: Kind::Gauge, value }
}

pub static SECTIONS: &[Section] = &[Section {
    name: "server",
    metrics: &[counter("caught_panics", "Internal errors that were caught. Anything but 0 is a bug: please report it.", |s| {
        s.panics
    })],
}];
