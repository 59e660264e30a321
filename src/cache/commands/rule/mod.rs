//! CACHE.RULE: one file per subcommand.

mod delete;
mod get;
mod list;
mod set;

pub use delete::Delete;
pub use get::Get;
pub use list::List;
pub use set::Set;

use crate::args::{Arg, Args};
use crate::error::Error;
use crate::spec::{ArgSpec, Container};

pub const CONTAINER: Container =
    Container { name: "cache.rule", summary: "Tells or sets which keys and tags an event invalidates." };

const EVENT: ArgSpec = ArgSpec::string("event");

/// The one argument of a subcommand.
fn only_argument<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
    args.skip_subcommand();
    let argument = args.required()?;
    if args.left() > 0 { Err(Error::WrongArity(args.command())) } else { Ok(argument) }
}
