//! What JSON may hold and readers like to pass over: strings that are no Unicode, members that come twice. A leaf: it imports
//! nothing of ours, anyone may use it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The text of a JSON string; lone surrogates, which are legal JSON but no Unicode, become replacement characters.
pub fn text_of(raw: &RawValue) -> Option<String> {
    struct Lossy;
    impl Visitor<'_> for Lossy {
        type Value = String;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a string")
        }

        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<String, E> {
            Ok(String::from_utf8_lossy(bytes).into_owned())
        }

        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
    }
    // `deserialize_bytes` is serde_json's documented way to read strings that may hold lone surrogates.
    serde_json::Deserializer::from_str(raw.get()).deserialize_bytes(Lossy).ok()
}

/// The members that come more than once in an object, and in those of its members that have these names (`sessions.ids`). Of what
/// is no JSON those before its end.
pub fn repeated_members(text: &[u8], nested: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let seed = Repeated { prefix: "", nested, found: &mut found };
    let _ = seed.deserialize(&mut serde_json::Deserializer::from_slice(text));
    found
}

struct Repeated<'a> {
    prefix: &'a str,
    nested: &'a [&'a str],
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Repeated<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Repeated<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        // Whether each has been told of.
        let mut known: HashMap<String, bool> = HashMap::new();
        while let Some(name) = members.next_key::<String>()? {
            if self.nested.contains(&name.as_str()) {
                let prefix = format!("{name}.");
                members.next_value_seed(Repeated { prefix: &prefix, nested: &[], found: self.found })?;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
            match known.entry(name) {
                Entry::Vacant(new) => _ = new.insert(false),
                Entry::Occupied(mut again) => {
                    if !again.insert(true) {
                        self.found.push(format!("{}{}", self.prefix, again.key()));
                    }
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_come_twice_are_told_once_as_deep_as_is_asked_for() {
        let repeated = |text: &str| repeated_members(text.as_bytes(), &["in"]);
        assert_eq!(repeated(r#"{"a":1,"b":{"c":1,"c":2},"a":2,"a":[3]}"#), ["a"]);
        assert_eq!(repeated(r#"{"in":{"a":null,"in":{"b":1,"b":2},"a":true},"in":{}}"#), ["in.a", "in"]);
        assert_eq!(repeated(r#"[{"a":1,"a":2}]"#), [""; 0]);
        assert_eq!(repeated(r#"{"a":1,"a":2,"#), ["a"], "it ends too soon");
    }
}
