//! `WRITEBEHIND.CLAIM queue worker [COUNT n] [LEASE ms] [BLOCK ms]`

use super::{QUEUE, worker};
use crate::args::{Arg, Args, once};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};
use crate::writebehind::deliver::{self, Wish};
use crate::writebehind::settings::LONGEST_MS;

pub struct Claim;

const MOST: i64 = 1_000_000;
const LEASE_MS: i64 = 30_000;

pub struct Request<'a> {
    queue: Arg<'a>,
    wish: Wish,
    /// 0: for as long as it takes.
    block_ms: Option<i64>,
}

impl Command for Claim {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "writebehind.claim",
        family: Family::WriteBehind,
        summary: "Hands records that are to be written to the database to a worker, for a limited time.",
        complexity: "O(M*log(N)) where M is the number of records handed out and N that of the dirty keys of the queue.",
        since: "0.1.0",
        arity: -3,
        // Not deny-oom: what is claimed will leave the queue.
        flags: &[Flag::Write, Flag::Blocking],
        keys: Keys::First,
        access: Access::Update,
        tips: &["nondeterministic_output"],
        args: &[
            QUEUE,
            ArgSpec::string("worker"),
            ArgSpec::integer("count").token("COUNT").optional(),
            ArgSpec::integer("milliseconds").token("LEASE").optional(),
            ArgSpec::integer("milliseconds").token("BLOCK").optional(),
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (queue, name) = (args.required()?, args.required()?);
        let (mut count, mut lease, mut block) = (None, None, None);
        while let Some(word) = args.take() {
            if word.is("COUNT") {
                once(&mut count, args.value()?)?;
            } else if word.is("LEASE") {
                once(&mut lease, args.value()?)?;
            } else if word.is("BLOCK") {
                once(&mut block, args.value()?)?;
            } else {
                return Err(Error::Syntax);
            }
        }
        let count = count.map(|arg| arg.int_within("COUNT", 1, MOST)).transpose()?.unwrap_or(1);
        let lease_ms = lease.map(|arg| arg.int_within("LEASE", 1, LONGEST_MS)).transpose()?.unwrap_or(LEASE_MS);
        let block_ms = block.map(|arg| arg.int_within("BLOCK", 0, i64::MAX)).transpose()?;
        let wish = Wish {
            worker: worker(name)?.bytes.into(),
            count: usize::try_from(count).map_err(|_| Error::Internal)?,
            lease_ms,
        };
        Ok(Request { queue, wish, block_ms })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { queue, wish, block_ms } = request;
        // Those who wait came first.
        deliver::serve(server, queue);
        let claimed = deliver::claim(server, queue, &wish)?;
        match block_ms {
            Some(block_ms) if claimed.is_empty() => {
                Ok(deliver::wait(server, queue, wish, block_ms)?.unwrap_or(Reply::Array(Vec::new())))
            }
            _ => Ok(claimed.into_reply(server)),
        }
    }
}
