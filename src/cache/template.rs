//! `product:{items[].id}:stock`: how the names of keys and tags are made from the data of an event.
//!
//! A placeholder is a path: names of fields with dots between them, and `[]` after a field that is an array, for each of its
//! elements. Places of a template that go through the same array speak of the same element; different arrays are combined, each
//! element of one with each of the other. `{{` and `}}` are braces.

use smallvec::SmallVec;

use super::event_data::{Datum, Wanted};

/// The longest template, in bytes.
pub const MAX_TEMPLATE_LENGTH: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: Box<[u8]>,
    parts: Vec<Part>,
    /// Each comes after the one that it lies in.
    arrays: Vec<Array>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<[u8]>),
    Field { path: Box<str>, place: Place },
}

/// Where a value is: from the whole, or from the element of an array, down some fields.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// Which of the template's arrays.
    element_of: Option<usize>,
    /// By their numbers in [`Wanted`].
    fields: SmallVec<[usize; 4]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Array {
    place: Place,
    /// What leads to it, ending in `[]`.
    prefix: Box<str>,
    /// The first path that goes through it.
    path: Box<str>,
}

/// Why a template gave no names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault<'t> {
    /// The path of what is missing, or is neither a string nor an integer.
    Needs(&'t str),
    TooMuch,
}

/// What is left of what one event may name.
#[derive(Clone, Debug)]
pub struct Room {
    pub names: usize,
    /// All names together.
    pub bytes: usize,
    /// Elements of arrays that are looked at.
    pub elements: usize,
}

impl Template {
    /// Reads a template, and adds what it needs to `wanted`. `None`: too long or empty, a brace without its partner, or a path that is
    /// none.
    pub fn parse(text: &[u8], wanted: &mut Wanted) -> Option<Template> {
        if !(1..=MAX_TEMPLATE_LENGTH).contains(&text.len()) {
            return None;
        }
        let mut template = Template { text: text.into(), parts: Vec::new(), arrays: Vec::new() };
        let (mut literal, mut rest) = (Vec::new(), text);
        while let Some((&byte, below)) = rest.split_first() {
            rest = below;
            match (byte, below.split_first()) {
                (b'{' | b'}', Some((&next, after))) if next == byte => {
                    literal.push(byte);
                    rest = after;
                }
                (b'{', _) => {
                    template.add_literal(&mut literal);
                    let end = below.iter().position(|&byte| byte == b'}')?;
                    let (path, after) = below.split_at_checked(end)?;
                    template.add_field(std::str::from_utf8(path).ok()?, wanted)?;
                    rest = after.strip_prefix(b"}")?;
                }
                (b'}', _) => return None,
                _ => literal.push(byte),
            }
        }
        template.add_literal(&mut literal);
        Some(template)
    }

    /// As it was written.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    fn add_literal(&mut self, literal: &mut Vec<u8>) {
        if !literal.is_empty() {
            self.parts.push(Part::Literal(std::mem::take(literal).into()));
        }
    }

    fn add_field(&mut self, path: &str, wanted: &mut Wanted) -> Option<()> {
        let (mut wanted, mut element_of, mut fields) = (wanted, None, SmallVec::new());
        let mut prefix = String::new();
        for segment in path.split('.') {
            let name = segment.trim_end_matches("[]");
            if name.is_empty() || name.contains(['[', ']', '{']) {
                return None;
            }
            let (number, below) = wanted.field(name)?;
            fields.push(number);
            wanted = below;
            prefix.push_str(name);
            for _ in 0..segment.matches("[]").count() {
                prefix.push_str("[]");
                let place = Place { element_of, fields: std::mem::take(&mut fields) };
                element_of = Some(self.array(place, &prefix, path));
                wanted = wanted.each();
            }
            prefix.push('.');
        }
        wanted.is_name();
        self.parts.push(Part::Field { path: path.into(), place: Place { element_of, fields } });
        Some(())
    }

    fn array(&mut self, place: Place, prefix: &str, path: &str) -> usize {
        self.arrays.iter().position(|array| *array.prefix == *prefix).unwrap_or_else(|| {
            self.arrays.push(Array { place, prefix: prefix.into(), path: path.into() });
            self.arrays.len().saturating_sub(1)
        })
    }

    /// Adds the names that the data gives.
    pub fn expand<'t>(&'t self, data: &Datum, room: &mut Room, names: &mut Vec<Box<[u8]>>) -> Result<(), Fault<'t>> {
        Expansion { template: self, data, elements: SmallVec::new(), room, names }.go_on()
    }
}

/// A template half way through its arrays.
struct Expansion<'t, 'd, 'o> {
    template: &'t Template,
    data: &'d Datum,
    /// The element of each array that was come to so far.
    elements: SmallVec<[&'d Datum; 4]>,
    room: &'o mut Room,
    names: &'o mut Vec<Box<[u8]>>,
}

impl<'t, 'd> Expansion<'t, 'd, '_> {
    fn go_on(&mut self) -> Result<(), Fault<'t>> {
        if !self.is_complete()? {
            return Ok(());
        }
        let template = self.template;
        let Some(array) = template.arrays.get(self.elements.len()) else { return self.add_name() };
        for element in self.array(array)? {
            self.room.elements = self.room.elements.checked_sub(1).ok_or(Fault::TooMuch)?;
            self.elements.push(element);
            self.go_on()?;
            self.elements.pop();
        }
        Ok(())
    }

    /// Is all there that the last element has to have? Asked here, since a name may never come about where an array is empty, and
    /// what is missing is missing all the same. `false`: there is nothing to combine.
    fn is_complete(&self) -> Result<bool, Fault<'t>> {
        let last = self.elements.len().checked_sub(1);
        for part in &self.template.parts {
            if let Part::Field { path, place } = part
                && place.element_of == last
            {
                self.find(place).filter(|datum| datum.is_name()).ok_or(Fault::Needs(path))?;
            }
        }
        let mut combine = true;
        for array in self.template.arrays.iter().filter(|array| array.place.element_of == last) {
            combine &= !self.array(array)?.is_empty();
        }
        Ok(combine)
    }

    fn array(&self, array: &'t Array) -> Result<&'d [Datum], Fault<'t>> {
        match self.find(&array.place) {
            Some(Datum::Array(elements)) => Ok(elements),
            _ => Err(Fault::Needs(&array.path)),
        }
    }

    fn find(&self, place: &Place) -> Option<&'d Datum> {
        let mut datum = match place.element_of {
            Some(array) => *self.elements.get(array)?,
            None => self.data,
        };
        for &number in &place.fields {
            let Datum::Object(fields) = datum else { return None };
            datum = fields.get(number)?.as_ref()?;
        }
        Some(datum)
    }

    fn add_name(&mut self) -> Result<(), Fault<'t>> {
        let mut name = Vec::new();
        for part in &self.template.parts {
            match part {
                Part::Literal(literal) => name.extend_from_slice(literal),
                Part::Field { path, place } => {
                    let datum = self.find(place).ok_or(Fault::Needs(path))?;
                    datum.append_to(&mut name).ok_or(Fault::Needs(path))?;
                }
            }
        }
        self.room.names = self.room.names.checked_sub(1).ok_or(Fault::TooMuch)?;
        self.room.bytes = self.room.bytes.checked_sub(name.len()).ok_or(Fault::TooMuch)?;
        self.names.push(name.into());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { names: 10, bytes: 200, elements: 100 };

    fn expand(template: &str, json: &str, mut room: Room) -> Result<Vec<String>, String> {
        let mut wanted = Wanted::default();
        let template = Template::parse(template.as_bytes(), &mut wanted).unwrap();
        let data = wanted.pick(json.as_bytes()).unwrap();
        let mut names = Vec::new();
        match template.expand(&data, &mut room, &mut names) {
            Ok(()) => Ok(names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()),
            Err(Fault::Needs(path)) => Err(path.to_owned()),
            Err(Fault::TooMuch) => Err("too much".to_owned()),
        }
    }

    fn names(template: &str, json: &str) -> Vec<String> {
        expand(template, json, ROOM).unwrap()
    }

    #[test]
    fn fields_and_paths_are_put_in_place() {
        assert_eq!(names("user:{user_id}:orders", r#"{"user_id":42,"x":[1]}"#), ["user:42:orders"]);
        assert_eq!(names("c:{order.customer.id}", r#"{"order":{"customer":{"id":"a b"}}}"#), ["c:a b"]);
        assert_eq!(names("{a}{b}{a}", r#"{"a":1,"b":""}"#), ["11"]);
        assert_eq!(names("all", "[]"), ["all"], "what needs nothing takes anything");
        assert_eq!(names("{{{id}}}:{{x}}", r#"{"id":7}"#), ["{7}:{x}"]);
        assert_eq!(names("{\u{e9}}", r#"{"\u00e9":"\u20ac\n"}"#), ["\u{20ac}\n"]);
    }

    #[test]
    fn integers_are_decimal_and_exact() {
        for n in ["0", "-1", "18446744073709551615", "-9223372036854775808", "9007199254740993"] {
            assert_eq!(names("{n}", &format!(r#"{{"n":{n}}}"#)), [n]);
        }
        for other in ["1.0", "1e3", "18446744073709551616", "-9223372036854775809", "true", "null", "{}", "[]", "[1]"] {
            assert_eq!(expand("x:{n}", &format!(r#"{{"n":{other}}}"#), ROOM), Err("n".to_owned()), "{other}");
        }
    }

    #[test]
    fn an_array_gives_one_name_for_each_element() {
        let items = r#"{"shop":5,"items":[{"id":1,"sizes":["s","m"]},{"id":2,"sizes":[]},{"id":"x","sizes":["l"]}]}"#;
        assert_eq!(
            names("product:{items[].id}:stock", items),
            ["product:1:stock", "product:2:stock", "product:x:stock"]
        );
        assert_eq!(names("{shop}:{items[].id}:{items[].sizes[]}", items), ["5:1:s", "5:1:m", "5:x:l"]);
        assert_eq!(names("{m[][]}", r#"{"m":[[1,2],[],[3]]}"#), ["1", "2", "3"]);
        assert_eq!(names("{a[]}-{b[]}", r#"{"a":[1,2],"b":["x","y"]}"#), ["1-x", "1-y", "2-x", "2-y"]);
        assert_eq!(names("{a[]}-{a[]}", r#"{"a":[1,2]}"#), ["1-1", "2-2"]);
        assert!(names("{a[]}", r#"{"a":[]}"#).is_empty());
    }

    #[test]
    fn what_is_missing_or_of_another_kind_is_named() {
        for (template, json, path) in [
            ("{a}", "{}", "a"),
            ("{a}", "7", "a"),
            ("{a.b}", r#"{"a":1}"#, "a.b"),
            ("{a[].b}", r#"{"a":{"b":1}}"#, "a[].b"),
            ("{a[].b}", r#"{"a":[{"b":1},{}]}"#, "a[].b"),
            ("{a[].b}", r#"{"a":[{"b":1},2]}"#, "a[].b"),
            ("{a[]}", r#"{"a":[1,[2]]}"#, "a[]"),
            ("{a[]}{b}", r#"{"a":[]}"#, "b"),
            ("{b[]}{a}", r#"{"b":[]}"#, "a"),
            ("{a[].b}{c[]}", r#"{"a":[{"b":1}]}"#, "c[]"),
        ] {
            assert_eq!(expand(template, json, ROOM), Err(path.to_owned()), "{template} {json}");
        }
    }

    #[test]
    fn names_bytes_and_steps_are_bounded() {
        let ten = r#"{"a":[0,1,2,3,4,5,6,7,8,9],"b":[],"c":[{"d":[]},{"d":[]}],"t":"0123456789"}"#;
        assert_eq!(names("{a[]}", ten).len(), 10);
        assert_eq!(expand("{a[]}", ten, Room { names: 9, ..ROOM }), Err("too much".to_owned()));
        assert_eq!(expand("{a[]}{t}", ten, Room { bytes: 109, ..ROOM }), Err("too much".to_owned()));
        assert_eq!(expand("{a[]}{t}", ten, Room { bytes: 110, ..ROOM }).unwrap().len(), 10);
        assert!(expand("{a[]}{b[]}", ten, Room { elements: 0, ..ROOM }).unwrap().is_empty(), "nothing to combine");
        assert_eq!(expand("{a[]}{c[].d[]}", ten, Room { elements: 29, ..ROOM }), Err("too much".to_owned()));
        assert!(expand("{a[]}{c[].d[]}", ten, Room { elements: 30, ..ROOM }).unwrap().is_empty());
    }

    #[test]
    fn a_template_that_is_none_is_refused() {
        let long = "x".repeat(MAX_TEMPLATE_LENGTH + 1);
        for text in [
            "", "{", "}", "{}", "{a", "a}", "{a{b}", "{{a}", "{a}}", "x{", "{.a}", "{a.}", "{a..b}", "{[]}", "{a[}",
            "{a]}", "{a[0]}", "{[].a}", "{a[]b}", "{a.[]}", &long,
        ] {
            assert_eq!(Template::parse(text.as_bytes(), &mut Wanted::default()), None, "{text}");
        }
        assert_eq!(Template::parse(b"{\xff}", &mut Wanted::default()), None, "no field of JSON is called so");
        let bytes = Template::parse(b"\xff{a}\x00", &mut Wanted::default()).unwrap();
        assert_eq!(bytes.text(), b"\xff{a}\x00");
        assert!(Template::parse(&b"x".repeat(MAX_TEMPLATE_LENGTH), &mut Wanted::default()).is_some());
    }
}
