//! One file per command.

pub mod floor;
pub mod get;
pub mod invalidate;
pub mod invalidate_tag;
pub mod mget;
pub mod mset;
pub mod set;
pub mod set_jitter;
pub mod set_tagged;
pub mod tag;
pub mod tag_info;
pub mod tag_keys;
pub mod tags;
pub mod ttl;
pub mod untag;
