//! CACHE.POLICY: one file per subcommand.

mod delete;
mod get;
mod list;
mod matching;
mod set;

pub use delete::Delete;
pub use get::Get;
pub use list::List;
pub use matching::Match;
pub use set::Set;

use crate::args::{Arg, Args};
use crate::error::Error;
use crate::spec::{ArgSpec, Container};

pub const CONTAINER: Container = Container {
    name: "cache.policy",
    summary: "Tells or sets what the writes and reads of keys with a common prefix leave out.",
};

const NAME: ArgSpec = ArgSpec::string("name");

/// The one argument of a subcommand.
fn only_argument<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
    args.skip_subcommand();
    let argument = args.required()?;
    if args.left() > 0 { Err(Error::WrongArity(args.command())) } else { Ok(argument) }
}
