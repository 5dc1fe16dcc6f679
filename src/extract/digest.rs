//! Digests by which items are recognised when they come again.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use siphasher::sip128::SipHasher13;

/// Keyed with secret random keys, so that nobody can craft two items with the same digest.
static DIGEST: LazyLock<SipHasher13> = LazyLock::new(|| {
    let key = || RandomState::new().hash_one(());
    SipHasher13::new_with_keys(key(), key())
});

/// A digest of the bytes of an item or an id. Comparable only within this process, as its keys are random.
pub(super) fn digest(text: &str) -> u128 {
    DIGEST.hash(text.as_bytes()).as_u128()
}

/// The name of a member that links to a file. The link carries a token that differs in every response.
const LINK: &str = "\"download_url\"";

/// A digest that ignores the tokens of links, which differ with each fetch.
pub(super) fn digest_of_content(item: &str) -> u128 {
    let (mut content, mut rest) = (String::new(), item);
    while let Some((before, link)) = rest.split_once(LINK) {
        let mut quotes = link.match_indices('"').map(|(at, _)| at);
        let (Some(begin), Some(end)) = (quotes.next(), quotes.next()) else { break };
        let address = link[begin..end].split('?').next().unwrap_or_default();
        content.extend([before, LINK, &link[..begin], address]);
        rest = &link[end..];
    }
    digest(&(content + rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_the_same_whatever_the_tokens_of_its_links_are() {
        let item = |first: &str, second: &str| {
            let file =
                |token| format!(r#"{{"file_id":"x","download_url" : "https://z/f?jwt={token}","size":1}}"#);
            format!(
                r#"{{"message":"\"download_url\"?","files":[{},{}],"id":"m?{first}"}}"#,
                file("a"),
                file(second)
            )
        };
        let digest = |first, second| digest_of_content(&item(first, second));
        assert_eq!(digest("1", "b"), digest("1", "c"));
        assert_ne!(digest("1", "b"), digest("2", "b"), "all else counts");
        let plain = r#"{"id":"m"}"#;
        assert_eq!(digest_of_content(plain), super::digest(plain));
        for odd in [r#"["download_url"]"#, r#"{"download_url":null}"#, r#"{"download_url":"x"}"#] {
            assert_ne!(digest_of_content(odd), digest_of_content(plain));
        }
    }
}
