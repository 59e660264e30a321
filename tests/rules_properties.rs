//! Rules against a naive model on whole JSON trees, and against any bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use keyward::cache::rules::{Names, Rule};
use keyward::error::Error;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;

/// JSON of few names, so that templates often find what they look for.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        4 => any::<i16>().prop_map(Value::from),
        2 => "[a-c]{0,2}".prop_map(Value::from),
        1 => Just(Value::Null),
        1 => Just(Value::from(1.5)),
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        prop_oneof![
            2 => vec(("[ab]", inner.clone()), 0..3).prop_map(|fields| fields.into_iter().collect()),
            2 => vec(inner, 0..3).prop_map(Value::from),
        ]
    })
}

fn object() -> impl Strategy<Value = Value> {
    (json(), json()).prop_map(|(a, b)| serde_json::json!({"a": a, "b": b}))
}

fn template() -> impl Strategy<Value = String> {
    let segment = ("[ab]", prop_oneof![3 => Just(""), 2 => Just("[]"), 1 => Just("[][]")]);
    let path = vec(segment, 1..3).prop_map(|segments| {
        let segments: Vec<String> = segments.iter().map(|(name, each)| format!("{name}{each}")).collect();
        segments.join(".")
    });
    vec(path, 1..3).prop_map(|paths| paths.iter().map(|path| format!("{{{path}}}-")).collect())
}

fn look<'v>(data: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(data, |value, segment| {
        let (name, indices) = segment.split_once('[').unwrap_or((segment, ""));
        let field = value.as_object()?.get(name)?;
        let indices = indices.split(['[', ']']).filter(|index| !index.is_empty());
        indices
            .map(|index| index.parse::<usize>().unwrap())
            .try_fold(field, |value, index| value.as_array()?.get(index))
    })
}

fn word(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned).or_else(|| value.as_i64().map(|n| n.to_string()))
}

/// Puts numbers in the place of the first `[]`, one after the other. `None`: something is missing.
fn model(template: &str, data: &Value) -> Option<Vec<String>> {
    let paths: Vec<&str> = template.split(['{', '}']).skip(1).step_by(2).collect();
    let mut combine = true;
    for path in &paths {
        match path.split_once("[]") {
            Some((array, _)) => combine &= !look(data, array)?.as_array()?.is_empty(),
            None => drop(word(look(data, path)?)?),
        }
    }
    let Some((array, _)) = paths.iter().find_map(|path| path.split_once("[]")) else {
        let filled = paths.iter().try_fold(template.to_owned(), |text, path| {
            Some(text.replacen(&format!("{{{path}}}"), &word(look(data, path)?)?, 1))
        });
        return Some(vec![filled?]);
    };
    let length = if combine { look(data, array)?.as_array()?.len() } else { 0 };
    let with = |i| model(&template.replace(&format!("{{{array}[]"), &format!("{{{array}[{i}]")), data);
    (0..length).map(with).collect::<Option<Vec<_>>>().map(|names| names.concat())
}

fn rule(keys: &[&[u8]], tags: &[&[u8]]) -> Result<Rule, Error> {
    Rule::new(b"e", keys.iter().copied(), tags.iter().copied())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn names_are_those_of_the_model(template in template(), data in object()) {
        let got = rule(&[template.as_bytes()], &[]).unwrap().names(data.to_string().as_bytes(), usize::MAX);
        match model(&template, &data) {
            Some(names) => {
                let keys: Vec<String> = got.unwrap().keys.iter().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect();
                prop_assert_eq!(keys, names);
            }
            None => {
                let Err(Error::NeedsField(event, path)) = got else { panic!("{got:?}") };
                prop_assert!(&*event == b"e" && template.contains(&format!("{{{path}}}")), "{path}");
            }
        }
    }

    #[test]
    fn no_more_names_than_allowed_and_all_or_none(template in template(), data in object(), max in 0_usize..4) {
        let rule = rule(&[template.as_bytes()], &[]).unwrap();
        let json = data.to_string();
        let bounded = rule.names(json.as_bytes(), max);
        match rule.names(json.as_bytes(), usize::MAX) {
            Ok(all) if all.keys.len() > max => prop_assert_eq!(bounded, Err(Error::EventTooLarge(max))),
            Ok(all) => prop_assert_eq!(bounded, Ok(all)),
            Err(_) => prop_assert!(bounded.is_err()),
        }
    }

    #[test]
    fn any_template_is_a_template_or_refused(text in vec(prop_oneof![Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b'.'), any::<u8>()], 0..20), data in object()) {
        match rule(&[&text], &[&text]) {
            Ok(rule) => {
                prop_assert_eq!(rule.keys[0].text(), &text[..]);
                let _ = rule.names(data.to_string().as_bytes(), 100);
            }
            Err(error) => prop_assert_eq!(error, Error::Template),
        }
    }

    #[test]
    fn any_bytes_are_json_or_refused(
        bytes in vec(prop_oneof![3 => prop::sample::select(b"{}[]\",:0123456789.eE+-tfn\\u ab".to_vec()), 1 => any::<u8>()], 0..60),
        data in object(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let all = rule(&[b"{a}", b"{a.b}", b"{a[]}", b"{b[].a}{a[].b[]}"], &[]).unwrap();
        let nothing = rule(&[b"k"], &[]).unwrap();
        let mut changed = data.to_string().into_bytes();
        for (index, byte) in flips {
            let place = index.index(changed.len());
            changed[place] = byte;
        }
        for json in [&bytes, &changed] {
            let valid = serde_json::from_slice::<Value>(json).is_ok();
            let key = || Names { keys: vec![b"k"[..].into()], tags: vec![] };
            prop_assert_eq!(nothing.names(json, 100), if valid { Ok(key()) } else { Err(Error::EventData) });
            prop_assert_eq!(all.names(json, 100) == Err(Error::EventData), !valid);
        }
    }
}
