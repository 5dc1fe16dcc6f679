//! Reading JSON strings that may not be Unicode. A leaf: it imports nothing of ours, anyone may use it.

use std::fmt;

use serde::Deserializer as _;
use serde::de::Visitor;
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
