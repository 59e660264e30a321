//! KEYWARD.DEBUG, in debug builds only: what a test needs and no user does.

use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub(super) struct Debug;

impl Command for Debug {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "keyward.debug",
        family: Family::Keyward,
        summary: "Panics on purpose, so that a test can see what comes of it. Debug builds only.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 2,
        flags: &[Flag::ReadOnly, Flag::Admin],
        keys: Keys::None,
        access: Access::None,
        tips: &[],
        args: &[ArgSpec::word("panic", "PANIC")],
    };
    type Request<'a> = Arg<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
        let word = args.required()?;
        args.end()?;
        if word.is("PANIC") { Ok(word) } else { Err(Error::Syntax) }
    }

    #[allow(clippy::panic, reason = "the purpose of this command")]
    fn run<'s, S: Server>(_: Arg<'_>, _: &'s mut S) -> Result<Reply<'s>, Error> {
        panic!("planted on purpose: 100% \u{439}\0")
    }
}
