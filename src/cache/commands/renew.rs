//! CACHE.RENEW

use super::fetch::checked_lease;
use crate::args::{Arg, Args};
use crate::cache::lease::Token;
use crate::cache::single_flight;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Renew;

#[derive(Debug)]
pub struct Request<'a> {
    key: Arg<'a>,
    token: Arg<'a>,
    lease_ms: i64,
}

impl Command for Renew {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.renew",
        family: Family::Cache,
        summary: "Gives a load that is under way more time.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 5,
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::First,
        access: Access::Overwrite,
        tips: &[],
        args: &[ArgSpec::key(), ArgSpec::string("token"), ArgSpec::integer("milliseconds").token("LEASE")],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, token) = (args.required()?, args.required()?);
        if args.left() != 2 {
            return Err(Error::WrongArity(args.command()));
        }
        if !args.required()?.is("LEASE") {
            return Err(Error::Syntax);
        }
        Ok(Request { key, token, lease_ms: args.value()?.int()? })
    }

    /// The time counts from now.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, token, lease_ms } = request;
        let lease_ms = checked_lease(lease_ms, &server.state().config)?;
        let (db, deadline) = (server.db(), server.now().to_ms().plus(lease_ms));
        single_flight::end_what_ran_out(server, db, key.bytes);
        let leases = &mut server.state().cache.leases;
        let renewed = Token::parse(token.bytes).is_some_and(|token| leases.renew(db, key.bytes, token, deadline));
        Ok(Reply::yes_no(renewed))
    }
}
