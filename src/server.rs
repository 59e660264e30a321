//! What the families need of the server they run in. `host/` implements it over the module API, tests over a map.
//!
//! Every method takes the server by `&mut` and hands out no reference that outlives the next call: the server calls back
//! into the module (lazy expiry, `del` events) from inside these methods, so no piece of [`State`] may be held across one.

use std::ffi::CStr;

use crate::args::Arg;
use crate::clock::{UnixMs, UnixUs};
use crate::cluster::{Nodes, Outgoing};
use crate::doctor::Drawn;
use crate::error::Error;
use crate::native::NativeValue;
use crate::reply::Reply;
use crate::state::State;

/// A string value that was found by [`Server::string`]; good until the next change of the keyspace in this command.
#[derive(Clone, Copy, Debug)]
pub struct StringValue(pub usize);

/// A client that waits, by its number of arrival. No number is used twice: a queue may keep one whose client has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiter(pub u64);

/// One word of a replicated command.
#[derive(Clone, Copy, Debug)]
pub enum Word<'a> {
    /// An argument of the running command: handed on as the server's own object, without a copy.
    Arg(Arg<'a>),
    Text(&'static str),
    Int(i64),
    Bytes(&'a [u8]),
}

/// When a key expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    NoKey,
    Never,
    At(UnixMs),
}

/// What a user wants to do with a key or a tag, for ACL checks of names that are no key arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    Read,
    Delete,
}

/// A user by name, to be asked about later; `None`: another module made the call, which has no user.
pub type UserName = Option<Box<[u8]>>;

pub trait Server {
    /// The moment of this command; the same throughout it, and never earlier than a moment given out before.
    fn now(&self) -> UnixUs;

    /// What is asked for next is a later moment. Only for work that no command does: there the server's own clock, by which keys
    /// expire, goes on as well.
    fn let_time_go_on(&mut self);

    /// The command comes from the primary or from the AOF: it is an effect to be applied, nothing is to be decided,
    /// and no clock, setting or random number may have a say.
    fn replayed(&self) -> bool;

    /// The server follows a primary, whoever sent the command.
    fn is_replica(&self) -> bool;

    /// Can the client of the running command be held? Not in a transaction or a script.
    fn may_block(&self) -> bool;

    /// May this server change the key? Not where it is a node of a cluster and the slot belongs to another, or is moving there and
    /// the key is not here (any more).
    fn serves(&mut self, key: Arg<'_>) -> bool;

    /// Where a client has to go for a key that this server does not [serve](Server::serves).
    fn redirection(&mut self, key: &[u8]) -> Error;

    /// Looks whether slots of the cluster may have been away since the last look. What was remembered of loads and negative
    /// answers is forgotten then. If the slot of this key is still coming from another node: that one's epoch, which is greater
    /// whenever the slot comes anew.
    fn notice_slot(&mut self, key: &[u8]) -> Option<u64>;

    /// Holds the client of the running command, which must reply [`Reply::Later`] then. It is answered by [`Server::answer`],
    /// or with `otherwise` after `timeout_ms` milliseconds (0: never). `None`: it cannot be held (it runs a transaction or a
    /// script).
    fn block(&mut self, timeout_ms: i64, otherwise: Reply<'static>) -> Option<Waiter>;

    /// Answers a client that waits. `false`: it has been answered before, or is gone.
    fn answer(&mut self, waiter: Waiter, reply: Reply<'static>) -> bool;

    /// Does this client still wait?
    fn is_waiting(&self, waiter: Waiter) -> bool;

    /// The connection of the running command. `None` where there is none that could close: in scripts and functions, within
    /// another command, and where a command is replayed.
    fn connection(&self) -> Option<u64>;

    /// Runs the rest of the running command's arguments, from this one on, as a command of its own: as the calling user, under
    /// the rules of scripts, and with no key outside the slot of `key`. It replicates itself. The reply may be
    /// [`Reply::Relayed`], which must be handed on.
    ///
    /// # Errors
    /// `CrossSlot`, `Nested` if this is called within itself, `CommandDenied`. What the command answers is no error here.
    fn execute(&mut self, key: Arg<'_>, command: Arg<'_>) -> Result<Reply<'static>, Error>;

    /// The selected database.
    fn db(&self) -> usize;

    /// Selects another database, for work that a timer does.
    fn select(&mut self, db: usize);

    /// A uniformly distributed number in `0..=most`.
    fn random(&mut self, most: u64) -> u64;

    /// The module's own memory.
    fn state(&mut self) -> &mut State;

    /// Would the server refuse to add data under this key since memory is full? For commands that are refused only where they
    /// would add data.
    fn memory_full(&mut self, key: Arg<'_>) -> bool;

    /// May the calling user do this to the key (or the tag, which is checked as if it were a key)?
    fn permits(&mut self, name: &[u8], permission: Permission) -> bool;

    /// Who runs this command.
    fn user(&mut self) -> UserName;

    /// As [`Server::permits`], for one who called before. One who was deleted since may do nothing.
    fn user_permits(&mut self, user: &UserName, name: &[u8], permission: Permission) -> bool;

    /// Does the key exist? Does not count as a use of the key.
    fn exists(&mut self, key: &[u8]) -> bool;

    /// When the key expires. Does not count as a use of the key.
    fn expiry(&mut self, key: Arg<'_>) -> Expiry;

    /// The key's string, `None` if there is no such key, `WrongType` if it holds something else.
    fn string(&mut self, key: Arg<'_>) -> Result<Option<StringValue>, Error>;

    /// The bytes of a string found before in this command.
    fn bytes(&self, value: StringValue) -> &[u8];

    /// Takes bytes in that are to be answered as if they had been found in the keyspace.
    fn hold(&mut self, bytes: Vec<u8>) -> StringValue;

    /// Stores a plain string, whatever was there, with this expiry or none. Fires `set`; does not replicate.
    fn set_string(&mut self, key: Arg<'_>, value: Arg<'_>, expiry: Option<UnixMs>);

    /// Unlinks keys, fires `del` for each that was there, and replicates that. The number of keys that were there.
    fn unlink(&mut self, keys: &[&[u8]]) -> usize;

    /// The same, and fires `cache.invalidate` for each key that was there.
    fn invalidate(&mut self, keys: &[&[u8]]) -> usize;

    /// The key's value of a type of ours, `None` if there is no such key, `WrongType` if it holds something else.
    /// A change made through it must be followed by [`Server::changed`].
    fn native<T: NativeValue>(&mut self, key: Arg<'_>) -> Result<Option<&mut T>, Error>;

    /// Puts a value of a type of ours in place of whatever is there. Fires no event; does not replicate.
    fn put_native<T: NativeValue>(&mut self, key: Arg<'_>, value: T, expiry: Option<UnixMs>);

    /// The value was changed in place: WATCH and client-side caches are told.
    fn changed(&mut self, key: Arg<'_>);

    /// Fires a keyspace notification of the module's own, where the change was decided: not on a replica that follows, nor while a
    /// file is loaded.
    fn announce(&mut self, event: &'static CStr, key: Arg<'_>);

    /// Sets the expiry of an existing key. Fires no event; does not replicate.
    fn set_expiry(&mut self, key: Arg<'_>, expiry: Option<UnixMs>);

    /// Deletes a key whose value has nothing left in it, and module memory learns of it. Fires no event, which would cost more than the deletion; does not
    /// replicate.
    fn delete(&mut self, key: Arg<'_>) -> bool;

    /// The nodes of the cluster; `None` where this server is in none.
    fn nodes(&mut self) -> Result<Option<Nodes>, Error>;

    /// Sends messages over the cluster bus, which may lose them, and sees to it that what is not answered is asked for.
    fn send_messages(&mut self, messages: &[Outgoing]);

    /// What INFO says.
    fn info(&mut self) -> String;

    /// The value of a setting of the server's.
    fn setting(&mut self, name: &'static CStr) -> Option<String>;

    /// Keys of the selected database, `count` times one at random; less where there is none. Does not count as a use.
    fn draw_keys(&mut self, count: usize) -> Vec<Drawn>;

    /// Can anybody receive what is replicated? If not, there is no need to put an effect together:
    /// [`Server::replicate_verbatim`] counts the change as well.
    fn has_audience(&self) -> bool;

    /// Sends this command to replicas and the AOF. Several calls in one command arrive as one transaction.
    fn replicate(&mut self, command: &'static str, words: &[Word<'_>]);

    /// Sends the running command as it came: only for commands that decide nothing where they are replayed.
    fn replicate_verbatim(&mut self);
}
