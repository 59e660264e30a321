//! Keyward: caching patterns inside Redis and Valkey. See DESIGN.md for the way from argv to reply.
#![cfg_attr(not(feature = "module"), forbid(unsafe_code))]

pub mod apply;
pub mod args;
pub mod cache;
pub mod clock;
pub mod cluster;
pub mod commands;
pub mod config;
pub mod departures;
pub mod doctor;
pub mod error;
#[cfg(any(test, not(feature = "module")))]
pub mod fake_server;
pub mod fencing;
pub mod hold_options;
#[cfg(feature = "module")]
mod host;
pub mod limbo;
pub mod lock;
pub mod metrics;
pub mod name;
pub mod native;
pub mod ratelimit;
pub mod reply;
pub mod server;
pub mod sessions;
pub mod slot;
pub mod spec;
pub mod state;
pub mod wait_queue;
pub mod writebehind;
