//! What comes from anybody: dumps, saved records, effects. It is refused, or taken whole; nothing crashes.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use keyward::apply::Apply;
use keyward::error::Error;
use keyward::fake_server::{FakeServer, Value};
use keyward::lock::Lock;
use keyward::lock::commands::Acquire;
use keyward::native::NativeValue;
use keyward::state::State;
use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #[test]
    fn no_bytes_crash_the_decoder_and_what_it_takes_it_writes_the_same(bytes in vec(any::<u8>(), 0..200)) {
        let state = State::default();
        if let Some(lock) = Lock::decode(&bytes) {
            prop_assert_eq!(lock.encode(&state), bytes);
        }
    }

    #[test]
    fn a_damaged_dump_is_refused_or_is_another_sound_lock(
        owner in vec(any::<u8>(), 1..1025),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let mut server = FakeServer::new();
        let argv = [b"lock.acquire".to_vec(), b"k".to_vec(), owner, b"PX".to_vec(), b"1000".to_vec()];
        server.call_argv::<Acquire>(argv.to_vec()).unwrap();
        let mut dump = match &server.keys[&(0, b"k".to_vec())].value {
            Value::Native(value) => value.downcast_ref::<Lock>().unwrap().encode(&server.state),
            _ => panic!("no lock"),
        };
        let at = at.index(dump.len());
        dump[at] ^= flip;
        if let Some(lock) = Lock::decode(&dump) {
            prop_assert_eq!(lock.encode(&server.state), dump);
        }
    }

    #[test]
    fn no_saved_record_crashes_the_loader(kind in 0..4_u64, bytes in vec(any::<u8>(), 0..60)) {
        let mut server = FakeServer::new();
        server.state.lock.load(kind, &bytes);
        server.state.loaded();
        let reply = server.call::<Acquire>("lock.acquire k ann PX 1").map(|_| ());
        prop_assert!(matches!(reply, Ok(()) | Err(Error::NoTokenLeft)), "{reply:?}");
    }

    #[test]
    fn effects_from_anybody_are_applied_or_refused_whole(
        effect in prop::sample::select(&["LOCK", "RESERVE", "PUTBACK", "FORGET"][..]),
        words in vec(prop_oneof![
            Just(b"k".to_vec()), Just(b"1".to_vec()), Just(b"0".to_vec()), Just(b"-1".to_vec()), Just(vec![]),
            Just(b"9007199254740991".to_vec()), Just(b"9007199254740992".to_vec()),
            Just(b"9223372036854775807".to_vec()), vec(any::<u8>(), 0..6),
        ], 0..7),
        replayed in any::<bool>(),
    ) {
        let mut server = FakeServer::new();
        server.replayed = replayed;
        server.put_string("text", "v");
        let mut argv = vec![b"keyward.apply".to_vec(), effect.as_bytes().to_vec()];
        argv.extend(words);
        let applied = server.call_argv::<Apply>(argv.clone()).is_ok();
        prop_assert_eq!(applied, !server.replicated.is_empty());
        if !applied {
            prop_assert_eq!(server.keys.len(), 1);
        }
    }
}
