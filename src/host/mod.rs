//! The only room that speaks to the server, and the only one with `unsafe`.

mod alloc;
mod api;
mod atomic_migration;
mod aux;
mod blocked;
mod cluster_bus;
mod command;
mod command_info;
mod config;
#[cfg(debug_assertions)]
mod debug;
mod events;
mod execute;
mod info;
mod keyspace;
mod log;
mod main_thread;
mod native_type;
mod open_key;
mod other_keys;
mod register;
mod replicate;
mod reply_writer;
mod server_info;
mod shell;
mod slots;
mod strings;
mod timer;
mod user;
