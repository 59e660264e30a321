//! `RATELIMIT.ENTER key id LIMIT n EX seconds | PX milliseconds [SESSION] [WAIT milliseconds]`

use crate::args::{Arg, Args, once};
use crate::commands::Command;
use crate::error::Error;
use crate::hold_options::{LEASE_SPEC, Lease, LeaseOption, OptionWords, Options, SESSION_SPEC, WAIT_SPEC};
use crate::ratelimit::concurrency::{self, MAX_LIMIT, Verdict};
use crate::ratelimit::slots::{self, Wish};
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Enter;

pub struct Request<'a> {
    key: Arg<'a>,
    id: Arg<'a>,
    limit: i64,
    lease: Lease,
    options: Options,
}

impl Command for Enter {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "ratelimit.enter",
        family: Family::RateLimit,
        summary: "Takes one of a limited number of slots for a limited time, or renews it.",
        complexity: "O(log(N)+N/512) where N is the number of slots.",
        since: "0.1.0",
        arity: -7,
        // Not deny-oom: who renews a slot needs no memory, and has no other way to.
        flags: &[Flag::Write, Flag::Blocking],
        keys: Keys::First,
        access: Access::Update,
        tips: &["nondeterministic_output"],
        args: &[
            ArgSpec::key(),
            ArgSpec::string("id"),
            ArgSpec::integer("limit").token("LIMIT"),
            LEASE_SPEC,
            SESSION_SPEC,
            WAIT_SPEC,
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, id) = (args.required()?, args.required()?);
        let (mut limit, mut lease, mut options) = (None, LeaseOption::default(), OptionWords::default());
        while let Some(word) = args.take() {
            if word.is("LIMIT") {
                once(&mut limit, args.value()?)?;
            } else if !lease.take(word, args)? && !options.take(word, args)? {
                return Err(Error::Syntax);
            }
        }
        let limit = limit.ok_or(Error::Syntax)?;
        let (lease, limit) = (lease.finish(args.command())?, parse_limit(limit)?);
        Ok(Request { key, id: concurrency::id(id)?, limit, lease, options: options.finish()? })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, id, limit, lease, options } = request;
        lease.deadline(server.now().to_ms(), Self::SPEC.name)?;
        let session = options.connection(server)?;
        let wish = Wish { id, limit, lease_ms: lease.ms(), session };
        let answer = slots::enter(server, key, &wish)?;
        match options.wait_ms {
            Some(wait_ms) if answer.verdict == Verdict::Denied => slots::wait(server, key, &wish, wait_ms, &answer),
            _ => Ok(answer.reply()),
        }
    }
}

fn parse_limit(arg: Arg<'_>) -> Result<i64, Error> {
    arg.int_within("LIMIT", 1, MAX_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMs;
    use crate::fake_server::FakeServer;
    use crate::ratelimit::commands::{Check, Leave};
    use crate::server::Waiter;

    const START_MS: i64 = 1_750_000_000_000;

    fn ints(reply: &Reply<'_>) -> Vec<i64> {
        match reply {
            Reply::Ints(ints) => ints.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn enter(server: &mut FakeServer, line: &str) -> Vec<i64> {
        ints(&server.call::<Enter>(&format!("ratelimit.enter {line}")).unwrap())
    }

    #[test]
    fn as_many_as_the_limit_get_a_slot_each_under_an_absolute_deadline() {
        let mut server = FakeServer::new();
        assert_eq!(enter(&mut server, "k a LIMIT 2 PX 1000"), [1, 1, 2, 0]);
        let effect = format!("KEYWARD.APPLY ENTER k a {} {START_MS}", START_MS + 1000);
        assert_eq!(server.take_replicated(), [effect]);
        server.advance_ms(100);
        assert_eq!(enter(&mut server, "k b EX 5 limit 2"), [1, 2, 2, 0]);
        assert_eq!(server.key_expiry("k"), Some(UnixMs(START_MS + 5100)));
        server.take_replicated();
        assert_eq!(enter(&mut server, "k c PX 1000 LIMIT 2"), [0, 2, 2, 900]);
        assert!(server.take_replicated().is_empty(), "a denial leaves no trace");
        let counters = server.state.ratelimit.slots;
        assert_eq!((counters.entered, counters.denied), (2, 1));
    }

    #[test]
    fn the_same_id_renews_its_slot_also_above_a_limit_that_was_lowered() {
        let mut server = FakeServer::new();
        for id in ["a", "b", "c"] {
            enter(&mut server, &format!("k {id} LIMIT 3 PX 1000"));
        }
        server.advance_ms(400);
        assert_eq!(enter(&mut server, "k b LIMIT 1 PX 2000"), [1, 3, 1, 0]);
        assert_eq!(server.key_expiry("k"), Some(UnixMs(START_MS + 2400)));
        // All three must go.
        assert_eq!(enter(&mut server, "k d LIMIT 1 PX 1000"), [0, 3, 1, 2000]);
        // a and c.
        assert_eq!(enter(&mut server, "k d LIMIT 2 PX 1000"), [0, 3, 2, 600]);
        // Renewed to less.
        assert_eq!(enter(&mut server, "k b LIMIT 1 PX 10"), [1, 3, 1, 0]);
        assert_eq!(server.key_expiry("k"), Some(UnixMs(START_MS + 1000)));
    }

    #[test]
    fn a_lease_that_is_over_frees_its_slot_whatever_the_key_says() {
        let mut server = FakeServer::new();
        enter(&mut server, "k a LIMIT 1 PX 1000");
        server.persist("k");
        server.advance_ms(999);
        assert_eq!(enter(&mut server, "k b LIMIT 1 PX 1000"), [0, 1, 1, 1]);
        server.advance_ms(1);
        assert_eq!(enter(&mut server, "k b LIMIT 1 PX 1000"), [1, 1, 1, 0]);
        assert_eq!(enter(&mut server, "k a LIMIT 1 PX 1000"), [0, 1, 1, 1000]);
    }

    #[test]
    fn the_connection_that_closes_frees_its_slots_and_a_copy_of_the_id_elsewhere_takes_it_over() {
        let mut server = FakeServer::new();
        enter(&mut server, "k a LIMIT 2 PX 1000 SESSION");
        enter(&mut server, "k b LIMIT 2 PX 1000 SESSION");
        server.connection = Some(2);
        enter(&mut server, "k b LIMIT 2 PX 1000 SESSION");
        server.take_replicated();
        server.state.connection_closed(1);
        while crate::state::due(&mut server) {}
        assert_eq!(server.take_replicated(), ["KEYWARD.APPLY LEFT k a"]);
        assert_eq!(enter(&mut server, "k c LIMIT 2 PX 1000"), [1, 2, 2, 0]);
        server.take_replicated();
        server.state.connection_closed(2);
        while crate::state::due(&mut server) {}
        assert_eq!(server.take_replicated(), ["KEYWARD.APPLY LEFT k b"]);
        assert_eq!(server.state.ratelimit.slots.sessions_closed, 2);
        server.connection = None;
        assert_eq!(server.call::<Enter>("e k d LIMIT 2 PX 1000 SESSION"), Err(Error::NeedsConnection));
    }

    #[test]
    fn who_waits_gets_the_slot_in_the_command_that_frees_it_and_is_not_overtaken() {
        let mut server = FakeServer::new();
        enter(&mut server, "k a LIMIT 1 PX 1000");
        assert_eq!(server.call::<Enter>("e k b LIMIT 1 PX 500 WAIT 100"), Ok(Reply::Later));
        assert_eq!(ints(&server.waiting[&Waiter(1)]), [0, 1, 1, 1000], "the answer if he waits in vain");
        assert_eq!(enter(&mut server, "k c LIMIT 9 PX 1000"), [0, 1, 9, 1000], "there is room, and he came later");
        server.take_replicated();
        server.advance_ms(10);
        assert_eq!(server.call::<Leave>("ratelimit.leave k a"), Ok(Reply::Int(1)));
        assert_eq!(server.answers.len(), 1);
        assert_eq!(ints(&server.answers[0].1), [1, 1, 1, 0]);
        let granted = format!("KEYWARD.APPLY ENTER k b {} {}", START_MS + 510, START_MS + 10);
        assert_eq!(server.take_replicated(), ["ratelimit.leave k a".to_owned(), granted]);
    }

    #[test]
    fn a_crowd_is_let_in_bit_by_bit_and_not_overtaken() {
        let mut server = FakeServer::new();
        enter(&mut server, "k a LIMIT 1 EX 60");
        for n in 0..1000 {
            let line = format!("e k w{n} LIMIT 1000000 EX 60 WAIT 0");
            let line = if n == 0 { line.replace("1000000", "1") } else { line };
            assert_eq!(server.call::<Enter>(&line), Ok(Reply::Later));
        }
        server.delete(crate::args::Arg::named(b"k"));
        let denied = enter(&mut server, "k late LIMIT 1000000 EX 60");
        assert_eq!(denied[0], 0);
        assert!((1..1000).contains(&server.answers.len()), "{}", server.answers.len());
        while crate::state::due(&mut server) {}
        assert_eq!(server.answers.len(), 1000);
        let order: Vec<u64> = server.answers.iter().map(|(waiter, _)| waiter.0).collect();
        assert!(order.is_sorted());
    }

    #[test]
    fn without_a_way_to_wait_it_is_a_try() {
        let mut server = FakeServer::new();
        enter(&mut server, "k a LIMIT 1 PX 1000");
        server.never_blocks = true;
        assert_eq!(enter(&mut server, "k b LIMIT 1 PX 1000 WAIT 0"), [0, 1, 1, 1000]);
        server.state.config.waiters_max = 0;
        assert_eq!(enter(&mut server, "k b LIMIT 1 PX 1000 WAIT 0"), [0, 1, 1, 1000]);
        server.never_blocks = false;
        assert_eq!(server.call::<Enter>("e k b LIMIT 1 PX 1000 WAIT 0"), Err(Error::TooManyWaiters));
        assert_eq!(server.state.ratelimit.waits_refused, 1);
    }

    #[test]
    fn memory_full_refuses_new_slots_and_waiting_for_one_but_no_renewal() {
        let mut server = FakeServer::new();
        enter(&mut server, "k a LIMIT 2 PX 1000");
        server.memory_full = true;
        server.take_replicated();
        assert_eq!(server.call::<Enter>("e k b LIMIT 2 PX 1000"), Err(Error::OutOfMemory));
        assert_eq!(server.call::<Enter>("e new b LIMIT 2 PX 1000"), Err(Error::OutOfMemory));
        assert_eq!(server.call::<Enter>("e k b LIMIT 1 PX 1000 WAIT 0"), Err(Error::OutOfMemory));
        assert!(server.take_replicated().is_empty() && server.waiting.is_empty());
        assert_eq!(enter(&mut server, "k b LIMIT 1 PX 1000"), [0, 1, 1, 1000]);
        assert_eq!(enter(&mut server, "k a LIMIT 2 PX 2000"), [1, 1, 2, 0]);
    }

    #[test]
    fn keys_of_another_type_are_left_alone_and_leave_the_slots_alone() {
        let mut server = FakeServer::new();
        server.put_string("s", "v");
        server.call::<Check>("c limiter 5 EX 60").unwrap();
        enter(&mut server, "slots a LIMIT 1 EX 60");
        server.take_replicated();
        for key in ["s", "limiter"] {
            assert_eq!(server.call::<Enter>(&format!("e {key} a LIMIT 1 EX 60")), Err(Error::WrongType));
            assert_eq!(server.call::<Leave>(&format!("l {key} a")), Err(Error::WrongType));
        }
        assert_eq!(server.call::<Check>("c slots 5 EX 60"), Err(Error::WrongType));
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn bad_arguments_are_refused_by_name() {
        let mut server = FakeServer::new();
        let long = "x".repeat(513);
        let expire = Error::InvalidExpire("ratelimit.enter");
        let limit = Error::CountRange("LIMIT", 1, 1_000_000);
        for (line, error) in [
            ("k".to_owned(), Error::WrongArity("ratelimit.enter")),
            ("k a".to_owned(), Error::Syntax),
            ("k a LIMIT 1".to_owned(), Error::Syntax),
            ("k a EX 1".to_owned(), Error::Syntax),
            ("k a 1 EX 1".to_owned(), Error::Syntax),
            ("k a LIMIT 1 LIMIT 1 EX 1".to_owned(), Error::Syntax),
            ("k a LIMIT 1 EX 1 PX 1".to_owned(), Error::Syntax),
            ("k a LIMIT 1 EX 1 SESSION SESSION".to_owned(), Error::Syntax),
            ("k a LIMIT 1 EX 1 WAIT".to_owned(), Error::Syntax),
            ("k a LIMIT 1 EX 1 WAIT -1".to_owned(), Error::CountRange("WAIT", 0, i64::MAX)),
            ("k a LIMIT 0 EX 1".to_owned(), limit.clone()),
            ("k a LIMIT 1000001 EX 1".to_owned(), limit),
            ("k a LIMIT x EX 1".to_owned(), Error::NotAnInteger),
            ("k a LIMIT 1 EX x".to_owned(), Error::NotAnInteger),
            ("k a LIMIT 1 EX 0".to_owned(), expire.clone()),
            ("k a LIMIT 1 PX -1".to_owned(), expire.clone()),
            ("k a LIMIT 1 PX 9223372036854775807".to_owned(), expire),
            (format!("k {long} LIMIT 1 EX 1"), Error::IdLength),
            ("k  LIMIT 1 EX 1".to_owned(), Error::IdLength),
        ] {
            assert_eq!(server.call::<Enter>(&format!("e {line}")), Err(error), "{line:.40}");
        }
        assert!(server.keys.is_empty());
    }
}
