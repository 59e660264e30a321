//! What of this family is replicated by KEYWARD.APPLY.

use crate::args::{Arg, Args};
use crate::error::Error;
use crate::server::Server;

/// Applies `effect` if it is one of this family's; `None` if it is not.
pub fn apply<S: Server>(_effect: Arg<'_>, _args: &mut Args<'_>, _server: &mut S) -> Option<Result<(), Error>> {
    None
}
