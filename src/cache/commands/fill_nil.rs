//! CACHE.FILLNIL

use smallvec::{SmallVec, smallvec};

use crate::args::{Arg, Args};
use crate::cache::write_options::{EXPIRY_SPEC, TAGS_SPEC, WriteOptions};
use crate::cache::{fill, governed};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Server, Word};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct FillNil;

#[derive(Debug)]
pub struct Request<'a> {
    key: Arg<'a>,
    token: Arg<'a>,
    options: WriteOptions<'a>,
}

impl Command for FillNil {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.fillnil",
        family: Family::Cache,
        summary: "Remembers that the origin has nothing for a key, and tells those who wait.",
        complexity: "O(N+M) where N is the number of tags and M the number of clients that wait.",
        since: "0.1.0",
        arity: -3,
        flags: &[Flag::Write],
        keys: Keys::First,
        access: Access::Delete,
        tips: &[],
        args: &[ArgSpec::key(), ArgSpec::string("token"), EXPIRY_SPEC.optional(), TAGS_SPEC.optional()],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, token) = (args.required()?, args.required()?);
        let options = WriteOptions::parse(args)?;
        let plain = options.jitter.is_none() && options.grace.is_none() && options.policy.is_none();
        let fits = plain && options.condition.is_none() && options.version.is_none();
        if fits { Ok(Request { key, token, options }) } else { Err(Error::Syntax) }
    }

    /// An old value that is still there is removed: the origin has none any more.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, token, options } = request;
        let until = governed::negative_until(server, key, &options, Self::SPEC.name)?;
        let answer = fill::Answer { status: "NONE", value: None };
        if fill::accept(server, key, token, &options.tags, None, &answer)?.is_none() {
            return Ok(Reply::Int(0));
        }
        server.invalidate(&[key.bytes]);
        let tags: SmallVec<[&[u8]; 8]> = options.tags.iter().map(|tag| tag.bytes).collect();
        let db = server.db();
        let state = server.state();
        let stored = state.cache.set_negative(&state.config, db, key.bytes, until, &tags);
        if stored.is_ok() {
            let mut words: SmallVec<[Word<'_>; 8]> =
                smallvec![Word::Text("NEGATIVE"), Word::Arg(key), Word::Int(until.0)];
            words.extend(options.tags.iter().copied().map(Word::Arg));
            server.replicate("KEYWARD.APPLY", &words);
        }
        fill::done(server, key, &answer);
        stored.map(|()| Reply::Int(1))
    }
}
