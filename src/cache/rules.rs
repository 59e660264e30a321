//! Rules: which keys and tags an event invalidates. They are settings of the server, not data: they belong to no database, and
//! FLUSHALL leaves them.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::event_data::Wanted;
use super::template::{Fault, Room, Template};
use super::write_options::MAX_TAG_LENGTH;
use crate::error::Error;

/// The longest name of an event, in bytes.
pub const MAX_EVENT_LENGTH: usize = 512;
/// How many templates of keys, and how many of tags, a rule may have.
pub const MAX_TEMPLATES: usize = 64;
/// All names that one event gives, together, in bytes.
const MAX_NAME_BYTES: usize = 16 * 1024 * 1024;
/// How many elements of arrays one event is looked through for, each counted as often as templates come to it: no JSON of the
/// allowed size has as many, so only combinations of arrays do.
const MAX_ELEMENTS: usize = 1024 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub event: Box<[u8]>,
    pub keys: Vec<Template>,
    pub tags: Vec<Template>,
    /// What all of them need.
    wanted: Wanted,
}

/// What an event invalidates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub keys: Vec<Box<[u8]>>,
    pub tags: Vec<Box<[u8]>>,
}

impl Rule {
    /// A rule of one template at least.
    pub fn new<'t>(
        event: &[u8],
        keys: impl IntoIterator<Item = &'t [u8]>,
        tags: impl IntoIterator<Item = &'t [u8]>,
    ) -> Result<Rule, Error> {
        if !(1..=MAX_EVENT_LENGTH).contains(&event.len()) {
            return Err(Error::EventLength);
        }
        let mut wanted = Wanted::default();
        let mut parsed = |templates: &mut dyn Iterator<Item = &'t [u8]>| {
            templates.map(|text| Template::parse(text, &mut wanted)).collect::<Option<Vec<_>>>().ok_or(Error::Template)
        };
        let (keys, tags) = (parsed(&mut keys.into_iter())?, parsed(&mut tags.into_iter())?);
        if keys.len() > MAX_TEMPLATES || tags.len() > MAX_TEMPLATES || (keys.is_empty() && tags.is_empty()) {
            return Err(Error::TemplateCount);
        }
        Ok(Rule { event: event.into(), keys, tags, wanted })
    }

    /// The names that an event with this JSON gives, in the order of the templates; at most `max`. All or none.
    pub fn names(&self, json: &[u8], max: usize) -> Result<Names, Error> {
        let data = self.wanted.pick(json).ok_or(Error::EventData)?;
        let mut room = Room { names: max, bytes: MAX_NAME_BYTES, elements: MAX_ELEMENTS };
        let mut names = Names::default();
        for (templates, names) in [(&self.keys, &mut names.keys), (&self.tags, &mut names.tags)] {
            for template in templates {
                template.expand(&data, &mut room, names).map_err(|fault| match fault {
                    Fault::Needs(path) => Error::NeedsField(self.event.clone(), path.into()),
                    Fault::TooMuch => Error::EventTooLarge(max),
                })?;
            }
        }
        let fits = names.tags.iter().all(|tag| (1..=MAX_TAG_LENGTH).contains(&tag.len()));
        if fits { Ok(names) } else { Err(Error::TagLength) }
    }
}

/// Is this JSON, for an event without a rule?
pub fn is_json(json: &[u8]) -> bool {
    Wanted::default().pick(json).is_some()
}

/// The rules of the server.
#[derive(Debug, Default)]
pub struct Rules {
    by_event: BTreeMap<Box<[u8]>, Rc<Rule>>,
}

impl Rules {
    pub fn len(&self) -> usize {
        self.by_event.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_event.is_empty()
    }

    pub fn get(&self, event: &[u8]) -> Option<&Rc<Rule>> {
        self.by_event.get(event)
    }

    /// In the order of their events.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.by_event.values().map(|rule| &**rule)
    }

    /// Puts a rule in place of the one of its event.
    pub fn put(&mut self, rule: Rule) {
        self.by_event.insert(rule.event.clone(), Rc::new(rule));
    }

    /// Whether there was one of this event.
    pub fn remove(&mut self, event: &[u8]) -> bool {
        self.by_event.remove(event).is_some()
    }

    /// All of them go: others are about to be loaded.
    pub fn clear(&mut self) {
        self.by_event.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(keys: &[&str], tags: &[&str]) -> Rule {
        Rule::new(b"e", keys.iter().map(|text| text.as_bytes()), tags.iter().map(|text| text.as_bytes())).unwrap()
    }

    fn needs(path: &str) -> Result<Names, Error> {
        Err(Error::NeedsField(b"e"[..].into(), path.into()))
    }

    #[test]
    fn an_event_names_keys_and_tags() {
        let rule = rule(&["user:{user}", "p:{items[].id}"], &["shop:{shop}", "p:{items[].id}"]);
        let names = rule.names(br#"{"user":1,"items":[{"id":2},{"id":3}],"shop":"x"}"#, 6).unwrap();
        let text =
            |names: &[Box<[u8]>]| names.iter().map(|n| String::from_utf8_lossy(n).into_owned()).collect::<Vec<_>>();
        assert_eq!(text(&names.keys), ["user:1", "p:2", "p:3"]);
        assert_eq!(text(&names.tags), ["shop:x", "p:2", "p:3"]);
        assert_eq!(
            rule.names(br#"{"user":1,"items":[{"id":2},{"id":3}],"shop":"x"}"#, 5),
            Err(Error::EventTooLarge(5))
        );
        assert_eq!(rule.names(br#"{"user":1,"items":[{"id":2},{}],"shop":"x"}"#, 5), needs("items[].id"));
        assert_eq!(rule.names(br#"{"user":1,"items":[]}"#, 5), needs("shop"));
        assert_eq!(rule.names(b"{", 5), Err(Error::EventData));
    }

    #[test]
    fn a_tag_out_of_bounds_stops_the_event_and_a_key_has_no_bounds() {
        let (tag, key) = (rule(&[], &["{t}"]), rule(&["{t}"], &[]));
        let json = |len: usize| format!(r#"{{"t":"{}"}}"#, "x".repeat(len));
        for len in [0, 513, 100_000] {
            assert_eq!(tag.names(json(len).as_bytes(), 5), Err(Error::TagLength));
            assert_eq!(key.names(json(len).as_bytes(), 5).unwrap().keys[0].len(), len);
        }
        assert_eq!(tag.names(json(512).as_bytes(), 5).unwrap().tags.len(), 1);
    }

    #[test]
    fn a_long_field_times_many_elements_is_too_much() {
        let rule = rule(&["{big}:{items[]}"], &[]);
        let json = format!(r#"{{"big":"{}","items":[{}0]}}"#, "x".repeat(500_000), "0,".repeat(999));
        assert_eq!(rule.names(json.as_bytes(), 1000), Err(Error::EventTooLarge(1000)));
    }

    #[test]
    fn a_rule_has_some_templates_and_not_too_many() {
        let none: [&[u8]; 0] = [];
        assert_eq!(Rule::new(b"e", none, none), Err(Error::TemplateCount));
        assert_eq!(Rule::new(b"e", [&b"t"[..]; 65], none), Err(Error::TemplateCount));
        assert_eq!(Rule::new(b"e", [&b"{"[..]], none), Err(Error::Template));
        assert_eq!(Rule::new(b"", [&b"t"[..]], none), Err(Error::EventLength));
        assert_eq!(Rule::new(&[b'e'; 513], [&b"t"[..]], none), Err(Error::EventLength));
        assert!(Rule::new(&[0xff; 512], [&b"t"[..]; 64], [&b"t"[..]; 64]).is_ok());
    }

    #[test]
    fn rules_are_found_by_event() {
        let mut rules = Rules::default();
        rules.put(rule(&["a"], &[]));
        rules.put(rule(&["b"], &[]));
        assert_eq!((rules.len(), rules.get(b"e").unwrap().keys[0].text()), (1, &b"b"[..]));
        assert!(rules.remove(b"e") && !rules.remove(b"e") && rules.is_empty());
    }
}
