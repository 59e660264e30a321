//! `{entity}:{id}:{field}`: what the keys of a policy are to look like.
//!
//! A placeholder stands for one or more bytes, none of them a separator. Separators are the bytes that follow a placeholder in the
//! pattern; `:` if none does. So a key has exactly one way to fit, and is judged in one pass. `{{` and `}}` are braces.

use smallvec::SmallVec;

/// The longest pattern, in bytes.
pub const MAX_PATTERN_LENGTH: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPattern {
    text: Box<[u8]>,
    parts: Vec<Part>,
    separators: SmallVec<[u8; 8]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<[u8]>),
    Placeholder,
}

impl KeyPattern {
    /// `None`: too long or empty, a brace without its partner, a placeholder without a name, or two side by side.
    pub fn parse(text: &[u8]) -> Option<KeyPattern> {
        if !(1..=MAX_PATTERN_LENGTH).contains(&text.len()) {
            return None;
        }
        let (mut parts, mut literal, mut rest) = (Vec::new(), Vec::new(), text);
        while let Some((&byte, below)) = rest.split_first() {
            let doubled = below.first() == Some(&byte);
            rest = below;
            if (byte == b'{' || byte == b'}') && doubled {
                literal.push(byte);
                rest = below.split_first().map_or(below, |(_, below)| below);
            } else if byte == b'{' {
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal).into()));
                }
                if parts.last() == Some(&Part::Placeholder) {
                    return None;
                }
                rest = after_name(below)?;
                parts.push(Part::Placeholder);
            } else if byte == b'}' {
                return None;
            } else {
                literal.push(byte);
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Some(KeyPattern { text: text.into(), separators: separators(&parts), parts })
    }

    /// As it was written.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    pub fn fits(&self, key: &[u8]) -> bool {
        let mut rest = key;
        for part in &self.parts {
            let below = match part {
                Part::Literal(literal) => rest.strip_prefix(&**literal),
                Part::Placeholder => {
                    let end = rest.iter().position(|byte| self.separators.contains(byte)).unwrap_or(rest.len());
                    rest.get(end..).filter(|_| end > 0)
                }
            };
            let Some(below) = below else { return false };
            rest = below;
        }
        rest.is_empty()
    }
}

/// What follows the name of a placeholder and its brace.
fn after_name(text: &[u8]) -> Option<&[u8]> {
    let end = text.iter().position(|&byte| byte == b'{' || byte == b'}').filter(|&end| end > 0)?;
    text.get(end..)?.strip_prefix(b"}")
}

fn separators(parts: &[Part]) -> SmallVec<[u8; 8]> {
    let mut found = SmallVec::new();
    for pair in parts.windows(2) {
        if let [Part::Placeholder, Part::Literal(literal)] = pair
            && let Some(&first) = literal.first()
            && !found.contains(&first)
        {
            found.push(first);
        }
    }
    if found.is_empty() {
        found.push(b':');
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(pattern: &str, key: &str) -> bool {
        KeyPattern::parse(pattern.as_bytes()).unwrap().fits(key.as_bytes())
    }

    #[test]
    fn a_placeholder_stands_for_one_segment() {
        for (pattern, good, bad) in [
            (
                "{entity}:{id}:{field}",
                &["user:42:profile", "a:b:c"][..],
                &["user:42", "user:42:profile:old", "user::profile", ":42:profile", "user:42:", ""][..],
            ),
            ("user:{id}", &["user:42", "user:a-b/c"], &["user:", "user:42:x", "users:42", "xuser:42"]),
            ("{tenant}/{entity}/{id}", &["acme/user/4:2"], &["acme/user", "acme/user/4/2"]),
            ("{a}-{b}:v{n}", &["x-y:v1"], &["x:y-v1", "x-y:1", "x-y:v", "x-y:v1-2"]),
            ("{{{id}}}:cart", &["{7}:cart"], &["7:cart", "{}:cart", "{7:cart"]),
            ("flags", &["flags"], &["flag", "flags:x"]),
        ] {
            for key in good {
                assert!(fits(pattern, key), "{pattern} {key}");
            }
            for key in bad {
                assert!(!fits(pattern, key), "{pattern} {key}");
            }
        }
    }

    #[test]
    fn a_pattern_that_could_not_be_judged_is_none() {
        let long = "x".repeat(MAX_PATTERN_LENGTH + 1);
        for text in ["", "{", "}", "{}", "{a}{b}", "{a", "a}", "{a{b}", "{a}}", "{{a}", "x{", &long] {
            assert_eq!(KeyPattern::parse(text.as_bytes()), None, "{text}");
        }
        assert!(KeyPattern::parse(&b"x".repeat(MAX_PATTERN_LENGTH)).is_some());
        assert!(KeyPattern::parse(b"\xff{\x00}\xfe").unwrap().fits(b"\xff7\xfe"));
    }
}
