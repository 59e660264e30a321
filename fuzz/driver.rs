//! What is done with an input: by the fuzz targets here, and by tests/fuzz_corpus.rs, which replays the corpus. An input
//! may be refused. It fails by a panic, or by a promise that is broken.

use keyward::args::Arg;
use keyward::cache::key_pattern::KeyPattern;
use keyward::cache::rules::{Rule, is_json};
use keyward::clock::UnixMs;
use keyward::cluster::{Message, NodeId, Nodes, Received};
use keyward::commands::Command;
use keyward::error::Error;
use keyward::every_command;
use keyward::fake_server::FakeServer;
use keyward::lock::Lock;
use keyward::native::NativeValue;
use keyward::ratelimit::concurrency::Slots;
use keyward::ratelimit::limiter::Limiter;
use keyward::server::Server;
use keyward::state::{KeyEvent, State};
use keyward::writebehind::Handle;

/// How many names an event may give here.
const MAX_NAMES: usize = 50;

/// The key that loaded values get, and that corpus scripts use.
const KEY: &str = "k";

/// A script: commands separated by an empty line, their words by line ends. `advance` and a number lets time pass, in
/// milliseconds; `evict` and `delete` remove a key behind the module's back.
#[allow(dead_code, reason = "each fuzz target uses one of them")]
pub fn run_script(input: &[u8]) {
    let mut server = FakeServer::new();
    let mut command: Vec<Vec<u8>> = Vec::new();
    for line in input.split(|byte| *byte == b'\n').chain([&b""[..]]) {
        if !line.is_empty() {
            command.push(line.to_vec());
        } else if !command.is_empty() {
            step(&mut server, std::mem::take(&mut command));
        }
    }
}

fn step(server: &mut FakeServer, argv: Vec<Vec<u8>>) {
    let words: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
    match words[..] {
        [b"advance", ms] => {
            let ms = std::str::from_utf8(ms).ok().and_then(|ms| ms.parse::<u32>().ok());
            server.advance_ms(ms.unwrap_or(1).into());
        }
        [b"evict", key] => server.evict(&String::from_utf8_lossy(key)),
        [b"delete", key] => {
            server.delete(Arg::named(key));
        }
        _ => {
            let (sent, answered) = (server.replicated.len(), server.answers.len());
            if call(server, argv).is_some_and(|result| result.is_err()) {
                assert_no_effect(&server.replicated[sent..], server.answers.len() - answered);
            }
        }
    }
}

/// What a refused command may have replicated: that a lock in its way had expired, or was still held, and the same of queues; and what became of those
/// who waited and whose time had come.
fn assert_no_effect(replicated: &[Vec<Vec<u8>>], answered: usize) {
    let is_upkeep = |words: &&Vec<Vec<u8>>| {
        words[0] == b"DEL"
            || matches!(words.get(1).map(Vec::as_slice), Some(b"FORGET" | b"PUTBACK" | b"WBFORGET" | b"WBPUTBACK"))
    };
    let effects: Vec<_> = replicated.iter().filter(|words| !is_upkeep(words)).collect();
    assert!(effects.len() <= answered, "an error replicated {effects:?}");
}

macro_rules! call_by_name {
    ($($command:ty,)*) => {
        /// Runs the command that is named first; `None` if there is no such command.
        fn call(server: &mut FakeServer, argv: Vec<Vec<u8>>) -> Option<Result<(), Error>> {
            let name = argv.first()?.to_ascii_lowercase();
            // As the specs name subcommands.
            let with_next = [&name[..], argv.get(1).map_or(&b""[..], Vec::as_slice)].join(&b'|').to_ascii_lowercase();
            $(if [&name, &with_next].iter().any(|name| *name == <$command as Command>::SPEC.name.as_bytes()) {
                // Formatting reads every byte of the reply.
                let reply = server.call_argv::<$command>(argv);
                return Some(reply.map(|reply| assert_ne!(format!("{reply:?}"), "")));
            })*
            None
        }
    };
}
every_command!(call_by_name);

/// What comes over the cluster bus: after a first byte that says who has sent it, a message up to its length, two bytes, and so on.
/// Whatever comes, no request is done twice while its sender may ask for it, and what is done is answered. A key `c` has come with its
/// slot, as the first one, and is in doubt.
#[allow(dead_code, reason = "each fuzz target uses one of them")]
pub fn receive(input: &[u8]) {
    let mut server = FakeServer::new();
    server.put_string(KEY, "value");
    server.call::<keyward::cache::commands::tag::Tag>("cache.tag k a b").ok();
    server.put_string("c", "value");
    keyward::cache::arrived(&mut server, b"c", &[NodeId::new(&[b'1'; NodeId::LENGTH]).expect("a name of its length")]);
    let mut rest = input;
    while let [sender, low, high, bytes @ ..] = rest {
        let (message, left) = bytes.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(bytes.len()));
        rest = left;
        assert_readable(message);
        let from = NodeId::new(&[b'0' + sender % 10; NodeId::LENGTH]).expect("a name of its length");
        let now = server.now().to_ms();
        match server.state.cluster.received(from, message, sender < &250, now) {
            Received::Nothing => {}
            Received::Send(outgoing) => assert!(Message::decode(&outgoing.bytes).is_some()),
            Received::Questions(questions) => {
                let answers = Message::Answers(server.state.cache.answer(questions, sender < &250, now));
                assert_eq!(Message::decode(&answers.encode()), Some(answers), "what is asked can be answered");
            }
            Received::Answers(answers) => answers.iter().for_each(|answer| {
                keyward::cache::act_on(&mut server, answer, None).ok();
            }),
        }
        while let Some(incoming) = server.state.cluster.take() {
            let count = keyward::state::deliver(&mut server, incoming.topic, &incoming.payload);
            let answer = server.state.cluster.done(incoming.from, incoming.id, count);
            assert_eq!(answer.is_some(), count.is_some());
            assert!(answer.is_none_or(|answer| Message::decode(&answer.bytes).is_some()));
        }
    }
    Nodes::parse(input);
}

/// A message says the same when it is written again.
fn assert_readable(bytes: &[u8]) {
    if let Some(message) = Message::decode(bytes) {
        assert_eq!(Message::decode(&message.encode()), Some(message));
    }
}

/// A dump. Its first byte says of what: a limiter, a lock, a record of an RDB file, whose kind is in the next two bytes, slots, or a
/// queue.
#[allow(dead_code, reason = "each fuzz target uses one of them")]
pub fn load_dump(input: &[u8]) {
    match input.split_first() {
        Some((0, bytes)) => load_value::<Limiter>(bytes, 64 * 1024),
        Some((1, bytes)) => load_value::<Lock>(bytes, 64 * 1024),
        Some((2, [low, high, bytes @ ..])) => load_record(u64::from(u16::from_le_bytes([*low, *high])), bytes),
        Some((3, bytes)) => load_value::<Slots>(bytes, 512 * 1024),
        Some((4, bytes)) => load_value::<Handle>(bytes, 512 * 1024),
        _ => {}
    }
}

/// The pattern of a policy and a key, or a template of a rule and JSON, in two parts at the first empty line. Its first byte says which.
#[allow(dead_code, reason = "each fuzz target uses one of them")]
pub fn match_names(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let Some(at) = rest.windows(2).position(|pair| pair == b"\n\n") else { return };
    let (text, data) = (&rest[..at], &rest[at + 2..]);
    if *kind == b'p' {
        if let Some(pattern) = KeyPattern::parse(text) {
            assert_eq!(pattern.text(), text, "a pattern is told as it was written");
            let fits = pattern.fits(data);
            assert!(!fits || !data.is_empty(), "a pattern has at least one byte, and so has what fits");
            assert_eq!(pattern.fits(data), fits);
        }
    } else {
        expand(text, data);
    }
}

fn expand(templates: &[u8], json: &[u8]) {
    let is_json = is_json(json);
    let templates: Vec<&[u8]> = templates.split(|byte| *byte == b'\n').collect();
    let Ok(rule) = Rule::new(b"e", templates.iter().copied(), [*templates.last().unwrap()]) else { return };
    for (template, text) in rule.keys.iter().zip(&templates) {
        assert_eq!(template.text(), *text, "a template is told as it was written");
    }
    match rule.names(json, MAX_NAMES) {
        Ok(names) => {
            assert!(is_json, "what is accepted does not depend on the rule");
            assert!(names.keys.len() + names.tags.len() <= MAX_NAMES);
        }
        Err(Error::EventData) => assert!(!is_json, "what is refused does not depend on the rule"),
        Err(_) => {}
    }
}

fn load_value<T: NativeValue>(bytes: &[u8], most: usize) {
    let Some(mut value) = T::decode(bytes) else { return };
    let mut server = FakeServer::new();
    assert_eq!(value.encode(&server.state), bytes, "a value is written as it was read");
    assert!(value.memory(&server.state) <= most, "the bytes cannot make it take any memory they like");
    let now = server.now();
    value.linked(0, KEY.as_bytes(), &mut server.state, now);
    server.put_native(Arg::named(KEY.as_bytes()), value, None);
    use_key(&mut server);
}

fn load_record(kind: u64, bytes: &[u8]) {
    let mut server = FakeServer::new();
    let now = server.now().to_ms();
    if server.state.load(kind, bytes, now).is_none() {
        return;
    }
    server.put_string(KEY, "value");
    server.event(KeyEvent::Loaded, KEY.as_bytes());
    server.state.loaded();
    assert_saves(&server.state, now);
    use_key(&mut server);
    server.call::<keyward::cache::commands::invalidate_tag::InvalidateTag>("cache.invalidatetag a b c").ok();
    server.state.flushed(None);
}

/// What is saved can be loaded.
fn assert_saves(state: &State, now: UnixMs) {
    let mut again = State::default();
    state.save(&mut |kind, bytes| assert!(again.load(kind, bytes, now).is_some(), "saved record {kind} is refused"));
    again.loaded();
}

/// Every command, whatever is there now.
fn use_key(server: &mut FakeServer) {
    for line in [
        "ratelimit.info k",
        "ratelimit.peek k 10 EX 60 COST 3",
        "ratelimit.check k 1000000000000 EX 60 COST 3",
        "ratelimit.check k 1000 PX 1",
        "ratelimit.enter k a LIMIT 2 PX 1000 SESSION",
        "ratelimit.enter k b LIMIT 1 PX 1000",
        "ratelimit.leave k a b",
        "ratelimit.check k GCRA 7 EX 60 BURST 100 FIXED 9 EX 60 RESERVE 1 COST 2",
        "ratelimit.refund k GCRA 7 EX 60 40 EX 60 COST 1",
        "ratelimit.ban k PX 1",
        "writebehind.info k",
        "writebehind.dead k",
        "writebehind.incrby k a 5",
        "writebehind.set k b 7 PX 100 TAGS 1 a",
        "writebehind.config k ATTEMPTS 1",
        "writebehind.claim k w COUNT 100 LEASE 50",
        "writebehind.del k a",
        "writebehind.ack k w a 7 b 7",
        "advance 60",
        "writebehind.claim k w COUNT 100",
        "writebehind.requeue k a",
        "writebehind.drop k b",
        "cache.get a",
        "cache.fetch b",
        "evict k",
        "writebehind.incrby k a -1",
        "lock.info k",
        "lock.validate k 1",
        "lock.extend k owner PX 1000",
        "lock.acquire k owner PX 1000 REENTRANT",
        "lock.release k owner",
        "cache.tags k",
        "cache.get k",
        "cache.tag k a b c",
        "cache.tagkeys a",
        "cache.taginfo a",
        "cache.intent k PX 100",
        "cache.rollback k x",
        "cache.commit k x v",
        "cache.floor k 5",
        "cache.set k v VERSION 6 TAGS 1 a PX 100",
        "advance 200",
        "lock.acquire k other PX 1000",
        "cache.untag k",
    ] {
        let words = line.split(' ').map(|word| word.as_bytes().to_vec()).collect();
        step(server, words);
    }
}
