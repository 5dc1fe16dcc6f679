//! Small encodings: base64 (both alphabets), percent-decoding, JSON strings, hexadecimal and decimal numbers.
//!
//! Base64 is the crate's. The rest is hand-written: JSON strings and numbers because messages are rendered by the million,
//! percent-decoding because the client encodes with a crate and the simulator must not share code with the client it tests.

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};

const LOWER_HEX: &[u8; 16] = b"0123456789abcdef";

/// Base64 with the URL-safe alphabet, without padding.
pub(super) fn base64url_encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn push_base64url(out: &mut String, bytes: &[u8]) {
    BASE64_URL_SAFE_NO_PAD.encode_string(bytes, out);
}

/// Only the canonical encoding is accepted: a token with changed spare bits is not the one that was issued.
pub(super) fn base64url_decode(text: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()
}

/// Base64 as HTTP Basic uses it; padding is optional.
pub(super) fn base64_decode_standard(text: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

/// Percent-decodes one layer. `None` for a broken escape or text that is not UTF-8.
pub(super) fn percent_decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            b'+' if plus_is_space => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

/// The pairs of a query string or form body; pairs that do not decode are left out.
pub(super) fn parse_pairs(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((percent_decode(name, true)?, percent_decode(value, true)?))
        })
        .collect()
}

/// Appends the text as a JSON string with its quotes.
pub(super) fn push_json_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            control if u32::from(control) < 0x20 => {
                out.push_str("\\u00");
                push_hex(out, u64::from(u32::from(control)), 2);
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

/// Appends the lowest `digits` hexadecimal digits of the value.
pub(super) fn push_hex(out: &mut String, value: u64, digits: u32) {
    for position in (0..digits).rev() {
        let index = (value >> (4 * position)) & 0xf;
        out.push(char::from(LOWER_HEX[index as usize]));
    }
}

pub(super) fn push_number(out: &mut String, value: u64) {
    let mut digits = [0_u8; 20];
    let mut rest = value;
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    digits[start..].iter().for_each(|digit| out.push(char::from(*digit)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_survives_a_round_trip_and_refuses_changed_spare_bits() {
        for length in 0..40_u8 {
            let bytes: Vec<u8> = (0..length).map(|n| n.wrapping_mul(37)).collect();
            assert_eq!(base64url_decode(&base64url_encode(&bytes)), Some(bytes));
        }
        assert_eq!(base64_decode_standard("c2ltOnNlY3JldA=="), Some(b"sim:secret".to_vec()));
        assert_eq!(base64url_decode("QQ"), Some(b"A".to_vec()));
        assert_eq!(base64url_decode("QR"), None);
    }

    #[test]
    fn percent_decoding_takes_off_exactly_one_layer() {
        assert_eq!(percent_decode("a%252Fb+c", false).as_deref(), Some("a%2Fb+c"));
        assert_eq!(percent_decode("a%2fb+c", true).as_deref(), Some("a/b c"));
        assert_eq!(percent_decode("100%", false), None);
        assert_eq!(percent_decode("%ff", false), None);
    }

    #[test]
    fn json_strings_read_back_as_they_were() {
        let text = "a\"b\\c\n\u{1}\u{202e}é😀/";
        let mut out = String::new();
        push_json_string(&mut out, text);
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
    }
}
