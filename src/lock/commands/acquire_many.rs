//! `LOCK.MACQUIRE n key [key ...] owner EX seconds | PX milliseconds [WAIT milliseconds] [SESSION]`

use smallvec::SmallVec;

use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::hold_options::{LEASE_SPEC, Lease, LeaseOption, OptionWords, Options, SESSION_SPEC, WAIT_SPEC};
use crate::lock::grant::{self, Wish};
use crate::lock::record::{self, Mode};
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct AcquireMany;

/// Most keys of one call.
pub(super) const MAX_KEYS: i64 = 1024;

pub(super) type KeyList<'a> = SmallVec<[Arg<'a>; 8]>;

pub struct Request<'a> {
    keys: KeyList<'a>,
    owner: Arg<'a>,
    lease: Lease,
    options: Options,
}

/// `n key [key ...]`: each key once, however often it is named.
pub(super) fn counted_keys<'a>(args: &mut Args<'a>) -> Result<KeyList<'a>, Error> {
    let count = args.required()?.int()?;
    if !(1..=MAX_KEYS).contains(&count) {
        return Err(Error::CountRange("number of keys", 1, MAX_KEYS));
    }
    let mut keys: KeyList<'a> = args.list(usize::try_from(count).map_err(|_| Error::Syntax)?)?.collect();
    keys.sort_by(|a, b| a.bytes.cmp(b.bytes));
    keys.dedup_by(|a, b| a.bytes == b.bytes);
    Ok(keys)
}

impl Command for AcquireMany {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "lock.macquire",
        family: Family::Lock,
        summary: "Acquires several locks at once, or none of them, and returns their common fencing token.",
        complexity: "O(N*log(M)) where N is the number of keys and M the number of clients that wait.",
        since: "0.1.0",
        arity: -6,
        flags: &[Flag::Write, Flag::DenyOom, Flag::Blocking],
        keys: Keys::Counted { step: 1 },
        access: Access::Update,
        tips: &["nondeterministic_output"],
        args: &[
            ArgSpec::integer("numkeys"),
            ArgSpec::key().multiple(),
            ArgSpec::string("owner"),
            LEASE_SPEC,
            WAIT_SPEC,
            SESSION_SPEC,
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (keys, owner) = (counted_keys(args)?, args.required()?);
        let (mut lease, mut options) = (LeaseOption::default(), OptionWords::default());
        while let Some(word) = args.take() {
            if !lease.take(word, args)? && !options.take(word, args)? {
                return Err(Error::Syntax);
            }
        }
        let (lease, options) = (lease.finish(args.command())?, options.finish()?);
        Ok(Request { keys, owner: record::owner(owner)?, lease, options })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { keys, owner, lease, options } = request;
        lease.deadline(server.now().to_ms(), Self::SPEC.name)?;
        let session = options.connection(server)?;
        let wish = Wish { owner, mode: Mode::Exclusive, lease_ms: lease.ms(), reentrant: false, session };
        if let Some(token) = grant::acquire_all(server, &keys, &wish)? {
            return Ok(Reply::Int(token));
        }
        let Some(wait_ms) = options.wait_ms else { return Ok(Reply::Nil) };
        Ok(grant::wait(server, &keys, &wish, wait_ms)?.unwrap_or(Reply::Nil))
    }
}
