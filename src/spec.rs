//! CommandSpec: the one description of a command. COMMAND DOCS and COMMAND INFO, arity, key specs, ACL categories, and the
//! head of its page under docs/commands all come from it.

use std::iter::StepBy;
use std::ops::Range;

use crate::apply;
use crate::args::parse_int;

/// A command that is nothing but its subcommands.
#[derive(Debug)]
pub struct Container {
    pub name: &'static str,
    pub summary: &'static str,
}

/// A command as users and clients see it.
#[derive(Debug)]
pub struct CommandSpec {
    /// Lower case, as Redis stores names: `cache.settagged`, `cache.policy|set`.
    pub name: &'static str,
    pub family: Family,
    pub summary: &'static str,
    pub complexity: &'static str,
    pub since: &'static str,
    /// As in COMMAND INFO: the number of arguments with the name, negative for "at least".
    pub arity: i32,
    pub flags: &'static [Flag],
    pub keys: Keys,
    pub access: Access,
    pub tips: &'static [&'static str],
    pub args: &'static [ArgSpec],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Cache,
    Lock,
    RateLimit,
    WriteBehind,
    /// Commands of the module about itself.
    Keyward,
}

impl Family {
    /// Can its commands give out a lease, or make it time to look at one? Those of locks and limits change keys only as plain
    /// commands do.
    pub const fn begins_loads(self) -> bool {
        match self {
            Family::Cache | Family::WriteBehind | Family::Keyward => true,
            Family::Lock | Family::RateLimit => false,
        }
    }

    /// The family's ACL category, for servers that let modules add categories.
    pub fn category(self) -> Option<&'static str> {
        match self {
            Family::Cache => Some("cache"),
            Family::Lock => Some("lock"),
            Family::RateLimit => Some("ratelimit"),
            Family::WriteBehind => Some("writebehind"),
            Family::Keyward => None,
        }
    }
}

/// Command flags as Redis names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    Write,
    ReadOnly,
    DenyOom,
    Fast,
    /// May hold the client.
    Blocking,
    /// @admin and @dangerous.
    Admin,
}

impl Flag {
    /// The word that module command registration takes.
    pub fn word(self) -> &'static str {
        match self {
            Flag::Write => "write",
            Flag::ReadOnly => "readonly",
            Flag::DenyOom => "deny-oom",
            Flag::Fast => "fast",
            Flag::Blocking => "blocking",
            Flag::Admin => "admin",
        }
    }
}

/// Where the keys stand in argv.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    None,
    /// The first argument.
    First,
    /// The first two arguments.
    FirstTwo,
    /// Every argument.
    All,
    /// Every argument but the first.
    AllButFirst,
    /// The one key of an effect, if it has one: see [`apply::key_position`].
    OfEffect,
    /// A count at 1, then that many groups of `step` arguments, each beginning with a key.
    Counted {
        step: i32,
    },
}

impl Keys {
    /// Must the command itself be asked where its keys are?
    pub fn are_told(self) -> bool {
        matches!(self, Keys::Counted { .. } | Keys::OfEffect)
    }

    /// Where the keys are in a command of `argc` words, whose first argument is this.
    pub fn positions(self, argc: usize, first: &[u8]) -> StepBy<Range<usize>> {
        let (range, step) = match self {
            Keys::None => (0..0, 1),
            Keys::First => (1..2, 1),
            Keys::FirstTwo => (1..3, 1),
            Keys::All => (1..argc, 1),
            Keys::AllButFirst => (2..argc, 1),
            Keys::OfEffect => (apply::key_position(first).map_or(0..0, |at| at..at.saturating_add(1)), 1),
            Keys::Counted { step } => {
                let step = usize::try_from(step).unwrap_or(1).max(1);
                let count = parse_int(first).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
                (2..count.saturating_mul(step).saturating_add(2), step)
            }
        };
        // A count beyond the arguments is refused by the command itself.
        (range.start..range.end.min(argc)).step_by(step)
    }
}

/// What a command does to its keys, in the terms of Redis key specs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No keys.
    None,
    /// Reads the value and answers with it.
    Read,
    /// Reads only metadata of the key (TTL, tags).
    Inspect,
    /// Replaces the value.
    Overwrite,
    /// Changes the value with regard to what it was, and answers from it.
    Update,
    /// Removes the key.
    Delete,
}

/// An argument in the manner of COMMAND DOCS.
#[derive(Debug)]
pub struct ArgSpec {
    pub name: &'static str,
    pub kind: Kind,
    /// The word before the value, or the word itself for `Kind::Token`.
    pub token: Option<&'static str>,
    pub optional: bool,
    /// May be repeated.
    pub multiple: bool,
    pub parts: &'static [ArgSpec],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Key,
    String,
    Integer,
    Double,
    UnixTime,
    /// A word without a value.
    Token,
    /// One of the parts.
    OneOf,
    /// All of the parts, in order.
    Block,
}

impl ArgSpec {
    pub const fn new(name: &'static str, kind: Kind) -> ArgSpec {
        ArgSpec { name, kind, token: None, optional: false, multiple: false, parts: &[] }
    }
    pub const fn key() -> ArgSpec {
        ArgSpec::new("key", Kind::Key)
    }
    pub const fn string(name: &'static str) -> ArgSpec {
        ArgSpec::new(name, Kind::String)
    }
    pub const fn integer(name: &'static str) -> ArgSpec {
        ArgSpec::new(name, Kind::Integer)
    }
    pub const fn unix_time(name: &'static str) -> ArgSpec {
        ArgSpec::new(name, Kind::UnixTime)
    }
    pub const fn word(name: &'static str, word: &'static str) -> ArgSpec {
        ArgSpec::new(name, Kind::Token).token(word)
    }
    pub const fn one_of(name: &'static str, parts: &'static [ArgSpec]) -> ArgSpec {
        ArgSpec { parts, ..ArgSpec::new(name, Kind::OneOf) }
    }
    pub const fn block(name: &'static str, parts: &'static [ArgSpec]) -> ArgSpec {
        ArgSpec { parts, ..ArgSpec::new(name, Kind::Block) }
    }
    pub const fn token(self, token: &'static str) -> ArgSpec {
        ArgSpec { token: Some(token), ..self }
    }
    pub const fn optional(self) -> ArgSpec {
        ArgSpec { optional: true, ..self }
    }
    pub const fn multiple(self) -> ArgSpec {
        ArgSpec { multiple: true, ..self }
    }
}

impl CommandSpec {
    /// The server's own ACL categories that the command belongs to, without `@`; the family's comes on top. They follow from
    /// the flags, as for the server's commands, but for commands of modules the server does not infer them.
    pub fn categories(&self) -> Vec<&'static str> {
        let named = self.flags.iter().flat_map(|flag| match flag {
            Flag::Write => &["write"][..],
            Flag::ReadOnly => &["read"],
            Flag::Admin => &["admin", "dangerous"],
            Flag::Blocking => &["blocking"],
            Flag::Fast | Flag::DenyOom => &[],
        });
        let speed = if self.flags.contains(&Flag::Fast) { "fast" } else { "slow" };
        named.copied().chain([speed]).collect()
    }

    /// The name as it is typed: `CACHE.POLICY SET`.
    pub fn title(&self) -> String {
        self.name.to_ascii_uppercase().replace('|', " ")
    }

    /// The name of the container and that of the subcommand, if it is one.
    pub fn subcommand(&self) -> Option<(&'static str, &'static str)> {
        self.name.split_once('|')
    }

    /// The syntax line, as redis-cli prints its hints: `CACHE.GET key`.
    pub fn syntax(&self) -> String {
        let mut line = self.title();
        for arg in self.args {
            line.push(' ');
            line.push_str(&arg.syntax());
        }
        line
    }
}

impl ArgSpec {
    fn syntax(&self) -> String {
        let parts = |separator: &str| self.parts.iter().map(ArgSpec::syntax).collect::<Vec<_>>().join(separator);
        let value = match self.kind {
            Kind::Token => String::new(),
            Kind::OneOf => parts(" | "),
            Kind::Block => parts(" "),
            _ => self.name.to_owned(),
        };
        let mut text = match (self.token, value.is_empty()) {
            (Some(token), true) => token.to_owned(),
            (Some(token), false) => format!("{token} {value}"),
            (None, _) => value,
        };
        if self.multiple {
            let again =
                if self.kind == Kind::OneOf || self.kind == Kind::Block { text.clone() } else { self.name.to_owned() };
            text = format!("{text} [{again} ...]");
        }
        if self.optional {
            text = format!("[{text}]");
        } else if self.kind == Kind::OneOf {
            text = format!("<{text}>");
        }
        text
    }
}
