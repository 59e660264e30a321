//! The pages under docs/ that follow tables in the source. The head of each is generated; what stands below the marker is
//! written by hand and kept. `KEYWARD_WRITE_DOCS=1` rewrites the heads, without it this test fails where they differ.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use keyward::commands::{CONTAINERS, specs};
use keyward::config::{self, SETTINGS};
use keyward::metrics::{self, SECTIONS};
use keyward::spec::{Access, ArgSpec, CommandSpec, Flag, Keys, Kind};

const MARKER: &str =
    "<!-- Up to here this page follows the source: `make docs` rewrites it. Below is written by hand. -->";

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

/// Compares the head of a page with what the source says, or rewrites it.
fn follow(page: &str, head: &str) -> Result<(), String> {
    let path = docs().join(page);
    let now = fs::read_to_string(&path).unwrap_or_default();
    let (old_head, body) = now.split_once(MARKER).unwrap_or(("", "\n"));
    if std::env::var_os("KEYWARD_WRITE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("{head}{MARKER}{body}")).unwrap();
        return Ok(());
    }
    if old_head == head { Ok(()) } else { Err(format!("docs/{page} differs from the source: run `make docs`")) }
}

fn fail_on(errors: Vec<String>) {
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

fn public_specs() -> impl Iterator<Item = &'static CommandSpec> {
    specs().into_iter().filter(|spec| !spec.name.starts_with("keyward.debug"))
}

fn categories(spec: &CommandSpec) -> String {
    let mut names: Vec<String> = spec.family.category().map(|name| format!("@{name}")).into_iter().collect();
    for flag in spec.flags {
        match flag {
            Flag::Write => names.push("@write".to_owned()),
            Flag::ReadOnly => names.push("@read".to_owned()),
            Flag::Fast => names.push("@fast".to_owned()),
            Flag::Blocking => names.push("@blocking".to_owned()),
            Flag::Admin => names.extend(["@admin".to_owned(), "@dangerous".to_owned()]),
            Flag::DenyOom => {}
        }
    }
    if !spec.flags.contains(&Flag::Fast) {
        names.push("@slow".to_owned());
    }
    names.join(", ")
}

fn keys(spec: &CommandSpec) -> String {
    let place = match spec.keys {
        Keys::None => return "none".to_owned(),
        Keys::First => "the first argument",
        Keys::FirstTwo => "the first two arguments",
        Keys::All => "all arguments",
        Keys::AllButFirst => "all arguments but the first",
        Keys::Counted { .. } => "counted by the first argument",
        Keys::OfEffect => "as the effect tells",
    };
    let access = match spec.access {
        Access::None => "not used",
        Access::Read => "read",
        Access::Inspect => "looked at",
        Access::Overwrite => "overwritten",
        Access::Update => "updated",
        Access::Delete => "deleted",
    };
    format!("{place}, {access}")
}

/// Without its ending. Subcommands share the page of their container.
fn page_of(spec: &CommandSpec) -> &'static str {
    spec.subcommand().map_or(spec.name, |(container, _)| container)
}

/// The heads of all pages, by page.
fn command_pages() -> Vec<(&'static str, String)> {
    let commands = public_specs().filter(|spec| spec.subcommand().is_none());
    let containers = CONTAINERS.iter().map(|container| {
        let mut page = format!("# {}\n\n{}\n\n", container.name.to_ascii_uppercase(), container.summary);
        for spec in public_specs().filter(|spec| page_of(spec) == container.name) {
            page.push('#');
            page.push_str(&command_page(spec));
        }
        (container.name, page)
    });
    commands.map(|spec| (spec.name, command_page(spec))).chain(containers).collect()
}

fn command_page(spec: &CommandSpec) -> String {
    let flags: Vec<&str> = spec.flags.iter().map(|flag| flag.word()).collect();
    let mut page = format!("# {}\n\n```\n{}\n```\n\n{}\n\n", spec.title(), spec.syntax(), spec.summary);
    writeln!(page, "| | |\n|---|---|").unwrap();
    writeln!(page, "| Since | {} |", spec.since).unwrap();
    writeln!(page, "| Complexity | {} |", spec.complexity).unwrap();
    writeln!(page, "| Flags | {} |", flags.join(", ")).unwrap();
    writeln!(page, "| ACL categories | {} |", categories(spec)).unwrap();
    writeln!(page, "| Keys | {} |", keys(spec)).unwrap();
    if !spec.tips.is_empty() {
        writeln!(page, "| Tips | {} |", spec.tips.join(", ")).unwrap();
    }
    page.push('\n');
    page
}

#[test]
fn every_command_has_a_page_that_follows_its_spec() {
    let errors = command_pages()
        .into_iter()
        .filter_map(|(name, head)| follow(&format!("commands/{name}.md"), &head).err())
        .collect();
    fail_on(errors);
}

#[test]
fn every_command_page_says_more_than_its_spec() {
    let errors = public_specs()
        .filter(|spec| !spec.name.starts_with("keyward."))
        .filter_map(|spec| {
            let name = page_of(spec);
            let page = fs::read_to_string(docs().join(format!("commands/{name}.md"))).unwrap_or_default();
            let body = page.split_once(MARKER).map_or("", |(_, body)| body);
            let missing: Vec<&str> =
                ["## Reply", "## Examples"].into_iter().filter(|part| !body.contains(part)).collect();
            (!missing.is_empty()).then(|| format!("docs/commands/{name}.md lacks {}", missing.join(" and ")))
        })
        .collect();
    fail_on(errors);
}

#[test]
fn every_page_belongs_to_a_command() {
    let names: Vec<String> = public_specs().map(|spec| format!("{}.md", page_of(spec))).collect();
    let errors = fs::read_dir(docs().join("commands"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|file| file != "README.md" && !names.contains(file))
        .map(|file| format!("docs/commands/{file} belongs to no command"))
        .collect();
    fail_on(errors);
}

#[test]
fn the_index_of_commands_is_complete() {
    let mut page = String::from("# Commands\n\n| Command | |\n|---|---|\n");
    for spec in public_specs() {
        writeln!(page, "| [{}]({}.md) | {} |", spec.title(), page_of(spec), spec.summary).unwrap();
    }
    page.push('\n');
    fail_on(follow("commands/README.md", &page).err().into_iter().collect());
}

#[test]
fn the_page_of_settings_follows_their_table() {
    let mut page = String::from(
        "# Configuration\n\n| Setting | Default | Range | Can change at run time | |\n|---|---|---|---|---|\n",
    );
    for setting in SETTINGS {
        let (default, range) = match setting.kind {
            config::Kind::Int { default, min, max, .. } => (default.to_string(), format!("{min} to {max}")),
            config::Kind::Bool { default, .. } => {
                ((if default { "yes" } else { "no" }).to_owned(), "yes, no".to_owned())
            }
            config::Kind::Word { words, .. } => (words[0].to_owned(), words.join(", ")),
        };
        let change = if setting.mutable { "yes" } else { "no" };
        writeln!(page, "| `keyward.{}` | {default} | {range} | {change} | {} |", setting.name, setting.summary)
            .unwrap();
    }
    page.push('\n');
    fail_on(follow("configuration.md", &page).err().into_iter().collect());
}

#[test]
fn the_page_of_metrics_follows_their_table() {
    let mut page = String::from("# Metrics\n\n");
    for section in SECTIONS {
        writeln!(page, "## `# keyward_{}`\n\n| Field | Kind | |\n|---|---|---|", section.name).unwrap();
        for metric in section.metrics {
            let kind = match metric.kind {
                metrics::Kind::Counter => "counter",
                metrics::Kind::Gauge => "gauge",
            };
            writeln!(page, "| `keyward_{}` | {kind} | {} |", metric.name, metric.summary).unwrap();
        }
        page.push('\n');
    }
    fail_on(follow("metrics.md", &page).err().into_iter().collect());
}

/// What the server refuses at load, found here without one.
#[test]
fn every_spec_is_sound() {
    fn check(command: &str, arg: &ArgSpec, errors: &mut Vec<String>) {
        let has_parts = !arg.parts.is_empty();
        let wants_parts = matches!(arg.kind, Kind::OneOf | Kind::Block);
        if has_parts != wants_parts {
            errors.push(format!("{command}: {} is a {:?} with {} parts", arg.name, arg.kind, arg.parts.len()));
        }
        if arg.kind == Kind::Token && arg.token.is_none() {
            errors.push(format!("{command}: {} has no token", arg.name));
        }
        arg.parts.iter().for_each(|part| check(command, part, errors));
    }
    let mut errors = Vec::new();
    for spec in specs() {
        let write = spec.flags.contains(&Flag::Write);
        if write == spec.flags.contains(&Flag::ReadOnly) {
            errors.push(format!("{}: neither or both of write and readonly", spec.name));
        }
        if (spec.keys == Keys::None) != (spec.access == Access::None) {
            errors.push(format!("{}: keys and access disagree", spec.name));
        }
        if spec.name != spec.name.to_ascii_lowercase() || spec.arity == 0 || !spec.summary.ends_with('.') {
            errors.push(format!("{}: name, arity or summary", spec.name));
        }
        spec.args.iter().for_each(|arg| check(spec.name, arg, &mut errors));
    }
    fail_on(errors);
}
