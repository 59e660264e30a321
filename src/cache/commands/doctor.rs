//! CACHE.DOCTOR

use crate::args::Args;
use crate::commands::Command;
use crate::doctor::{self, Facts, SAMPLE, each_once};
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, CommandSpec, Family, Flag, Keys};

pub struct Doctor;

impl Command for Doctor {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.doctor",
        family: Family::Cache,
        summary: "Goes through the caching checklist and says what to do.",
        complexity: "O(1): some hundred keys and some thousand tags are looked at.",
        since: "0.1.0",
        arity: 1,
        flags: &[Flag::ReadOnly, Flag::Admin],
        keys: Keys::None,
        access: Access::None,
        tips: &["nondeterministic_output", "request_policy:special", "response_policy:special"],
        args: &[],
    };
    type Request<'a> = ();

    fn parse(args: &mut Args<'_>) -> Result<(), Error> {
        if args.left() > 0 { Err(Error::WrongArity(args.command())) } else { Ok(()) }
    }

    fn run<'s, S: Server>((): (), server: &'s mut S) -> Result<Reply<'s>, Error> {
        let facts = Facts {
            info: server.info(),
            preamble: server.setting(c"aof-use-rdb-preamble").as_deref() != Some("no"),
            drawn: each_once(server.draw_keys(SAMPLE)),
        };
        let now = server.now().to_ms();
        Ok(Reply::OwnedBytes(doctor::report(&facts, server.state(), now).into_bytes()))
    }
}
