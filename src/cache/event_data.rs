//! The data of an event: of its JSON only what templates name is picked out, in one pass. The rest is checked and dropped, so
//! that a large event costs no more memory than what it names.

use std::fmt;
use std::io::Write as _;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// What of a JSON value is to be picked out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Itself, as a part of a name.
    name: bool,
    fields: Vec<(Box<str>, Wanted)>,
    /// Of each of its elements.
    each: Option<Box<Wanted>>,
}

/// What was picked out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datum {
    Text(Box<str>),
    Unsigned(u64),
    Signed(i64),
    /// The wanted fields, in their order there.
    Object(Vec<Option<Datum>>),
    Array(Vec<Datum>),
    /// Something that is not wanted as what it is.
    Other,
}

impl Wanted {
    /// A field, and its number. There always is one.
    pub fn field(&mut self, name: &str) -> Option<(usize, &mut Wanted)> {
        let number = self.fields.iter().position(|(known, _)| **known == *name).unwrap_or(self.fields.len());
        if number == self.fields.len() {
            self.fields.push((name.into(), Wanted::default()));
        }
        self.fields.get_mut(number).map(|(_, field)| (number, field))
    }

    pub fn each(&mut self) -> &mut Wanted {
        self.each.get_or_insert_default()
    }

    pub fn is_name(&mut self) {
        self.name = true;
    }

    /// Reads JSON, all of it. `None`: it is none, or is nested deeper than 127 levels, where the parser stops.
    pub fn pick(&self, json: &[u8]) -> Option<Datum> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let datum = Picker(Some(self)).deserialize(&mut reader).ok()?;
        reader.end().ok()?;
        Some(datum)
    }
}

impl Datum {
    /// Can it be part of a name?
    pub fn is_name(&self) -> bool {
        matches!(self, Datum::Text(_) | Datum::Unsigned(_) | Datum::Signed(_))
    }

    /// `None`: it cannot.
    pub fn append_to(&self, name: &mut Vec<u8>) -> Option<()> {
        match self {
            Datum::Text(text) => name.extend_from_slice(text.as_bytes()),
            Datum::Unsigned(n) => write!(name, "{n}").ok()?,
            Datum::Signed(n) => write!(name, "{n}").ok()?,
            Datum::Object(_) | Datum::Array(_) | Datum::Other => return None,
        }
        Some(())
    }
}

/// Reads one value. `None`: nothing of it is wanted. It is read like the rest all the same, so that whether JSON is accepted does
/// not depend on the rules.
#[derive(Clone, Copy)]
struct Picker<'w>(Option<&'w Wanted>);

impl Picker<'_> {
    fn is_name(self) -> bool {
        self.0.is_some_and(|wanted| wanted.name)
    }
}

impl<'de> DeserializeSeed<'de> for Picker<'_> {
    type Value = Datum;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Datum, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Picker<'_> {
    type Value = Datum;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Datum, E> {
        Ok(Datum::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Datum, E> {
        Ok(Datum::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Datum, E> {
        Ok(Datum::Other)
    }

    fn visit_u64<E>(self, n: u64) -> Result<Datum, E> {
        Ok(if self.is_name() { Datum::Unsigned(n) } else { Datum::Other })
    }

    fn visit_i64<E>(self, n: i64) -> Result<Datum, E> {
        Ok(if self.is_name() { Datum::Signed(n) } else { Datum::Other })
    }

    fn visit_str<E>(self, text: &str) -> Result<Datum, E> {
        Ok(if self.is_name() { Datum::Text(text.into()) } else { Datum::Other })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Datum, A::Error> {
        let each = self.0.and_then(|wanted| wanted.each.as_deref());
        let mut elements = Vec::new();
        while let Some(element) = array.next_element_seed(Picker(each))? {
            if each.is_some() {
                elements.push(element);
            }
        }
        Ok(if each.is_some() { Datum::Array(elements) } else { Datum::Other })
    }

    /// Of a field that is there twice the last one counts.
    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Datum, A::Error> {
        let wanted = self.0.map_or(&[][..], |wanted| &wanted.fields);
        let mut fields = vec![None; wanted.len()];
        while let Some(number) = object.next_key_seed(FieldNumber(wanted))? {
            let field = number.and_then(|number| wanted.get(number));
            let value = object.next_value_seed(Picker(field.map(|(_, wanted)| wanted)))?;
            if let Some(slot) = number.and_then(|number| fields.get_mut(number)) {
                *slot = Some(value);
            }
        }
        Ok(if wanted.is_empty() { Datum::Other } else { Datum::Object(fields) })
    }
}

/// Reads the name of a field: which of the wanted ones it is.
struct FieldNumber<'w>(&'w [(Box<str>, Wanted)]);

impl<'de> DeserializeSeed<'de> for FieldNumber<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Option<usize>, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for FieldNumber<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Option<usize>, E> {
        Ok(self.0.iter().position(|(wanted, _)| **wanted == *name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wanted_is_kept() {
        let mut wanted = Wanted::default();
        wanted.field("a").unwrap().1.is_name();
        wanted.field("b").unwrap().1.each().is_name();
        assert_eq!(wanted.field("a").unwrap().0, 0);
        let picked = wanted.pick(br#"{"z":{"a":1},"b":[1,"x",null,{"y":2}],"a":5,"a":-6}"#).unwrap();
        let b = [Datum::Unsigned(1), Datum::Text("x".into()), Datum::Other, Datum::Other];
        assert_eq!(picked, Datum::Object(vec![Some(Datum::Signed(-6)), Some(Datum::Array(b.to_vec()))]));
    }

    #[test]
    fn whether_json_is_accepted_does_not_depend_on_what_is_wanted() {
        let mut wanted = Wanted::default();
        wanted.field("a").unwrap().1.field("b").unwrap().1.each().field("c").unwrap().1.is_name();
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let in_field = |field: &str, levels| format!(r#"{{"{field}":{}}}"#, deep(levels));
        for good in
            ["{}", " [1, 2.5e3, \"\\ud83d\\ude00\"]\n", "\"x\"", &deep(127), &in_field("a", 126), &in_field("z", 126)]
        {
            assert!(
                wanted.pick(good.as_bytes()).is_some() && Wanted::default().pick(good.as_bytes()).is_some(),
                "{good}"
            );
        }
        let invalid = b"{\"z\":\"\xff\"}";
        let deeper = [deep(128), in_field("a", 127), in_field("z", 127), deep(100_000)];
        let bad =
            ["", " ", "{", "[1,]", "{}x", "{a:1}", "nul", "01", "1e999", r#""\ud800""#, r#"{"a":1"#, "'x'", "NaN"];
        let bad = bad.iter().map(|text| text.as_bytes()).chain(deeper.iter().map(String::as_bytes));
        for bad in bad.chain([&invalid[..]]) {
            assert!(wanted.pick(bad).is_none() && Wanted::default().pick(bad).is_none(), "{:.80}", bad.escape_ascii());
        }
    }
}
