//! Every error text that goes over the wire. Texts are ASCII, name the allowed range and echo no user data.

use std::fmt;
use std::rc::Rc;

use crate::cluster::NodeId;

/// What a user may be told went wrong. An error means that nothing changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Lower-case name of the command.
    WrongArity(&'static str),
    Syntax,
    NotAnInteger,
    /// Lower-case name of the command.
    InvalidExpire(&'static str),
    WrongType,
    OutOfMemory,
    NoPermission,
    CommandDenied,
    Internal,
    TagCount,
    TagLength,
    TooManyTags,
    IndexFull,
    VersionRange,
    CountRange(&'static str, i64, i64),
    /// The option.
    Percent(&'static str),
    Beta,
    MessageLength,
    ReadOnly,
    InvalidCursor,
    OwnerLength,
    NoTokenLeft,
    PermitsMismatch(u32),
    UpgradeDeadlock,
    OwnerHoldsOne,
    TooManyWaiters,
    TooManyIntents,
    NeedsConnection,
    Fenced,
    Nested,
    CrossSlot,
    LimitCount,
    /// The slot, and where its node is.
    Moved(u16, Rc<str>),
    Ask(u16, Rc<str>),
    SlotMoves,
    /// In the words of the server.
    Unblocked,
    TooManyLimits,
    IdLength,
    ZeroRate,
    /// What, and the range it has to be in.
    OutOfRange(&'static str, &'static str),
    QueueFull,
    QueueIsKey,
    WorkerLength,
    LoaderLength,
    Overflow,
    NoSuchPolicy,
    PrefixTaken,
    TooManyPolicies,
    Pattern,
    PolicyNameLength,
    PrefixLength,
    /// The name of a key does not match the pattern of this policy.
    KeyName(Box<[u8]>),
    EventLength,
    EventData,
    EventDataLength,
    /// How many keys and tags an event may name.
    EventTooLarge(usize),
    /// The event, and the path of the field.
    NeedsField(Box<[u8]>, Box<str>),
    Template,
    TemplateCount,
    TooManyRules,
    /// The command cannot wait where it runs.
    MustWait(&'static str),
    NodesUnknown,
    FanOutLength,
    ShardsNotReached(Box<NotReached>),
    /// A message for `KEYWARD.APPLY`, whose arguments come from a link or a file.
    BadEffect,
}

/// Shards that have not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReached {
    /// Their primaries, as far as is known, and the addresses.
    pub missing: Vec<(NodeId, Rc<str>)>,
    /// How many shards there are.
    pub shards: usize,
    /// How many keys the others have dealt with.
    pub count: i64,
}

impl fmt::Display for NotReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ERR {} of {} shards not reached:", self.missing.len(), self.shards)?;
        for (position, (id, address)) in self.missing.iter().enumerate() {
            write!(f, "{} {id} at {address}", if position > 0 { "," } else { "" })?;
        }
        write!(f, "; what the others did ({} keys) stays done", self.count)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::WrongArity(command) => {
                write!(f, "ERR wrong number of arguments for '{command}' command")
            }
            Error::Syntax => f.write_str("ERR syntax error"),
            Error::NotAnInteger => f.write_str("ERR value is not an integer or out of range"),
            Error::InvalidExpire(command) => {
                write!(f, "ERR invalid expire time in '{command}' command")
            }
            Error::WrongType => f.write_str("WRONGTYPE Operation against a key holding the wrong kind of value"),
            Error::OutOfMemory => f.write_str("OOM command not allowed when used memory > 'maxmemory'."),
            Error::NoPermission => f.write_str("NOPERM No permissions to access a key"),
            Error::CommandDenied => {
                f.write_str("NOPERM No permissions to run the command or to access one of its keys")
            }
            Error::Internal => f.write_str("ERR internal error"),
            Error::TagCount => f.write_str("ERR number of tags must be 1 to 64"),
            Error::TagLength => f.write_str("ERR a tag must be 1 to 512 bytes"),
            Error::TooManyTags => f.write_str("ERR a key can carry at most 64 tags"),
            Error::IndexFull => f.write_str("ERR no room for more tagged keys"),
            Error::VersionRange => f.write_str("ERR version must be an integer from 0 to 9223372036854775807"),
            Error::CountRange(what, low, high) => {
                write!(f, "ERR {what} must be an integer from {low} to {high}")
            }
            Error::Percent(option) => write!(f, "ERR {option} percentage must be an integer from 0 to 100"),
            Error::Beta => f.write_str("ERR BETA must be a number from 0 to 1000"),
            Error::MessageLength => f.write_str("ERR MSG must be at most 1024 bytes"),
            Error::ReadOnly => f.write_str("READONLY You can't write against a read only replica."),
            Error::InvalidCursor => f.write_str("ERR invalid cursor"),
            Error::OwnerLength => f.write_str("ERR owner must be 1 to 1024 bytes"),
            Error::NoTokenLeft => f.write_str("ERR no fencing token is left below 9007199254740992"),
            Error::PermitsMismatch(n) => write!(f, "ERR permits mismatch (is {n})"),
            Error::UpgradeDeadlock => f.write_str("ERR lock upgrade would deadlock"),
            Error::OwnerHoldsOne => f.write_str("ERR owner holds one of the keys"),
            Error::TooManyWaiters => f.write_str("ERR too many waiters"),
            Error::TooManyIntents => f.write_str("ERR too many intents"),
            Error::NeedsConnection => f.write_str("ERR SESSION needs a connection"),
            Error::Nested => f.write_str("ERR LOCK.EXEC cannot run within LOCK.EXEC"),
            Error::CrossSlot => f.write_str("CROSSSLOT Keys in request don't hash to the same slot"),
            Error::Moved(slot, node) => write!(f, "MOVED {slot} {node}"),
            Error::Ask(slot, node) => write!(f, "ASK {slot} {node}"),
            Error::SlotMoves => f.write_str("TRYAGAIN Keys of the request are moving to another node"),
            Error::Unblocked => f.write_str(
                "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
            ),
            Error::Fenced => f.write_str("FENCED token is stale"),
            Error::LimitCount => f.write_str("ERR a call can name at most 8 limits"),
            Error::TooManyLimits => f.write_str("ERR a key can hold at most 16 limits of different windows"),
            Error::IdLength => f.write_str("ERR id must be 1 to 512 bytes"),
            Error::ZeroRate => f.write_str("ERR zero rates are not supported: count and period must be 1 or more"),
            Error::OutOfRange(what, range) => write!(f, "ERR {what} out of range ({range})"),
            Error::QueueFull => f.write_str("WBFULL write-behind queue is full"),
            Error::QueueIsKey => f.write_str("ERR queue and key must be different keys"),
            Error::WorkerLength => f.write_str("ERR worker must be 1 to 1024 bytes"),
            Error::LoaderLength => f.write_str("ERR loader name must be 1 to 512 bytes"),
            Error::Overflow => f.write_str("ERR increment or decrement would overflow"),
            Error::NoSuchPolicy => f.write_str("ERR no such policy"),
            Error::PrefixTaken => f.write_str("ERR another policy has this prefix"),
            Error::TooManyPolicies => f.write_str("ERR too many policies"),
            Error::Pattern => {
                f.write_str("ERR PATTERN must be 1 to 512 bytes, with placeholders like {id} that do not touch")
            }
            Error::PolicyNameLength => f.write_str("ERR policy name must be 1 to 512 bytes"),
            Error::PrefixLength => f.write_str("ERR PREFIX must be at most 512 bytes"),
            // The operator's own word, but it goes into a line of the protocol.
            Error::KeyName(policy) => write!(f, "ERR key name does not match policy '{}'", policy.escape_ascii()),
            Error::EventLength => f.write_str("ERR event must be 1 to 512 bytes"),
            Error::EventData => f.write_str("ERR data of an event must be valid JSON, nested at most 127 deep"),
            Error::EventDataLength => f.write_str("ERR data of an event must be at most 1048576 bytes"),
            Error::EventTooLarge(max) => {
                write!(f, "ERR an event may name at most {max} keys and tags, of at most 16777216 bytes together")
            }
            // As for the name of a policy.
            Error::NeedsField(event, path) => {
                write!(f, "ERR event '{}' needs field '{}'", event.escape_ascii(), path.as_bytes().escape_ascii())
            }
            Error::Template => {
                f.write_str("ERR a template must be 1 to 512 bytes, with placeholders like {user.id} or {items[].id}")
            }
            Error::TemplateCount => f.write_str("ERR number of templates must be 1 to 64"),
            Error::TooManyRules => f.write_str("ERR too many rules"),
            Error::MustWait(command) => {
                write!(
                    f,
                    "ERR '{command}' waits for other nodes, which is not possible in transactions, scripts and functions"
                )
            }
            Error::NodesUnknown => f.write_str("ERR the server does not tell the nodes of the cluster"),
            Error::FanOutLength => f.write_str("ERR arguments for other nodes must be at most 33554432 bytes together"),
            Error::ShardsNotReached(shards) => shards.fmt(f),
            Error::BadEffect => f.write_str("ERR malformed effect"),
        }
    }
}

impl std::error::Error for Error {}
