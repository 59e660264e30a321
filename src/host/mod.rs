//! The only room that speaks to the server, and the only one with `unsafe`.
