//! LOCK.*: locks with a lease and a fencing token.
//!
//! A lock is a key with a value of the type `kw-lock-1`. `record` decides who holds what until when, `grant` brings
//! it together with the tokens and with who waits, `keyspace` brings them to the server, and `state` follows
//! what happens to the keys behind the module's back.

pub mod commands;
pub mod effects;
mod grant;
mod holders;
mod keyspace;
mod record;
mod request;
mod state;
mod value;

pub use grant::due;
pub use keyspace::put_back;
pub use state::State;
pub use value::Lock;
