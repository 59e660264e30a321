//! CACHE.POLICY MATCH

use super::only_argument;
use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Match;

impl Command for Match {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.policy|match",
        family: Family::Cache,
        summary: "Returns the name of the policy of a key, whether there is such a key or not.",
        complexity: "O(N) where N is the length of the key, however many policies there are.",
        since: "0.1.0",
        arity: 3,
        flags: &[Flag::ReadOnly, Flag::Fast],
        // As CLUSTER KEYSLOT: it asks about a name, and looks at no key.
        keys: Keys::None,
        access: Access::None,
        tips: &[],
        args: &[ArgSpec::string("key")],
    };
    type Request<'a> = Arg<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
        only_argument(args)
    }

    fn run<'s, S: Server>(key: Arg<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let policy = server.state().cache.policies.find(key.bytes);
        Ok(policy.map_or(Reply::Nil, |policy| Reply::Bytes(&policy.name)))
    }
}
