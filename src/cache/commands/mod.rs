//! One file per command.

pub mod commit;
pub mod fail;
pub mod fetch;
pub mod fill;
pub mod fill_nil;
pub mod floor;
pub mod get;
pub mod intent;
pub mod invalidate;
pub mod invalidate_tag;
pub mod mfetch;
pub mod mget;
pub mod mset;
pub mod renew;
pub mod rollback;
pub mod set;
pub mod set_jitter;
pub mod set_tagged;
pub mod stale;
pub mod stale_tag;
pub mod tag;
pub mod tag_info;
pub mod tag_keys;
pub mod tags;
pub mod ttl;
pub mod untag;
