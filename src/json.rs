//! JSON that most readers mishandle (strings that are not valid Unicode, repeated members), and reading single members of an
//! object without the rest. A leaf: it imports nothing of ours, anyone may use it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The text of a JSON string; lone surrogates, which are legal JSON but not valid Unicode, become replacement characters.
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

/// The members of an object with these names; if a name is repeated, the last one.
pub fn members<'a, const N: usize>(
    object: &'a str,
    names: [&str; N],
) -> serde_json::Result<[Option<&'a RawValue>; N]> {
    serde_json::Deserializer::from_str(object).deserialize_map(Members(names))
}

struct Members<'n, const N: usize>([&'n str; N]);

impl<'de, const N: usize> Visitor<'de> for Members<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = [None; N];
        while let Some(place) = map.next_key_seed(PlaceOf(&self.0))? {
            match place {
                Some(place) => found[place] = Some(map.next_value()?),
                None => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(found)
    }
}

/// Reads a member's name as its index in this list, if it is there.
struct PlaceOf<'n>(&'n [&'n str]);

impl<'de> DeserializeSeed<'de> for PlaceOf<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for PlaceOf<'_> {
    type Value = Option<usize>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|known| *known == name))
    }
}

/// The names of members that occur more than once in an object, or in its members named in `nested` (as in `sessions.ids`). In
/// malformed JSON, those found before the error.
pub fn duplicate_members(text: &[u8], nested: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let repeated = Repeated { prefix: "", nested, found: &mut found };
    let _ = serde_json::Deserializer::from_slice(text).deserialize_map(repeated);
    found
}

struct Repeated<'a> {
    prefix: &'a str,
    nested: &'a [&'a str],
    found: &'a mut Vec<String>,
}

impl<'de> Visitor<'de> for Repeated<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        // Each name seen so far, and whether its repetition has been reported.
        let mut known: HashMap<String, bool> = HashMap::new();
        while let Some(name) = members.next_key::<String>()? {
            let value: &RawValue = members.next_value()?;
            if self.nested.contains(&name.as_str()) {
                let inner = Repeated { prefix: &format!("{name}."), nested: &[], found: &mut *self.found };
                // What is not an object has no members to repeat.
                let _ = serde_json::Deserializer::from_str(value.get()).deserialize_map(inner);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_member_that_comes_twice_the_last_is_found() {
        let object = r#"{"a":1,"\u0062":[{"a":7}],"a":{"c":2},"":null}"#;
        let found = members(object, ["b", "a", "c", ""]).unwrap();
        let texts = found.map(|raw| raw.map(RawValue::get));
        assert_eq!(texts, [Some(r#"[{"a":7}]"#), Some(r#"{"c":2}"#), None, Some("null")]);
        for other in ["[]", r#"{"a":1"#, "7"] {
            assert!(members(other, ["a"]).is_err(), "{other}");
        }
    }

    #[test]
    fn members_that_come_twice_are_told_once_as_deep_as_is_asked_for() {
        let repeated = |text: &str| duplicate_members(text.as_bytes(), &["in"]);
        assert_eq!(repeated(r#"{"a":1,"b":{"c":1,"c":2},"a":2,"a":[3]}"#), ["a"]);
        assert_eq!(repeated(r#"{"in":{"a":null,"in":{"b":1,"b":2},"a":true},"in":{}}"#), ["in.a", "in"]);
        assert_eq!(repeated(r#"[{"a":1,"a":2}]"#), [""; 0]);
        assert_eq!(repeated(r#"{"a":1,"a":2,"#), ["a"], "it ends too soon");
    }
}
