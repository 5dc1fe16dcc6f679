//! Access tokens and page tokens.
//!
//! Access tokens are stored while they are valid. Page tokens are not stored: they carry their cursor, their time of issue and
//! a keyed checksum of the exact query they belong to, so that an account of any size needs no memory for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::calendar;
use super::encoding::{base64url_decode, base64url_encode};
use super::noise::Noise;

#[derive(Debug)]
pub(super) struct AccessTokens {
    noise: Noise,
    issued: u64,
    /// Each with its expiry in milliseconds since 1970, and its scopes.
    live: HashMap<String, (i64, Arc<[String]>)>,
    /// All that were ever issued, for tests that search for leaked tokens.
    pub(super) all: Vec<String>,
}

impl AccessTokens {
    pub(super) fn new(noise: Noise) -> Self {
        Self { noise, issued: 0, live: HashMap::new(), all: Vec::new() }
    }

    pub(super) fn issue(&mut self, life: Duration, scopes: Arc<[String]>) -> String {
        let now = calendar::now_ms();
        self.live.retain(|_, (ends, _)| *ends > now);
        self.issued += 1;
        let mut bytes = Vec::with_capacity(48);
        for part in 0..6 {
            bytes.extend_from_slice(&self.noise.with(self.issued).with(part).value().to_le_bytes());
        }
        let token = format!("sim.{}", base64url_encode(&bytes));
        self.all.push(token.clone());
        self.live.insert(token.clone(), (now + life.as_millis() as i64, scopes));
        token
    }

    /// Returns the scopes of a valid token.
    pub(super) fn scopes_of(&self, token: &str) -> Option<Arc<[String]>> {
        self.live.get(token).filter(|(ends, _)| *ends > calendar::now_ms()).map(|(_, scopes)| scopes.clone())
    }

    pub(super) fn revoke(&mut self, token: &str) {
        self.live.remove(token);
    }

    pub(super) fn revoke_all(&mut self) {
        self.live.clear();
    }
}

/// Makes a page token that holds `cursor` and belongs to `query`.
pub(super) fn seal(noise: Noise, query: &str, cursor: &[u64]) -> String {
    let issued = calendar::now_ms() as u64;
    let mut bytes = Vec::with_capacity(16 + cursor.len() * 8);
    bytes.extend_from_slice(&check(noise, query, issued, cursor).to_le_bytes());
    bytes.extend_from_slice(&issued.to_le_bytes());
    for part in cursor {
        bytes.extend_from_slice(&part.to_le_bytes());
    }
    base64url_encode(&bytes)
}

/// Returns the cursor of a token that belongs to `query` and was issued after this moment.
pub(super) fn open(noise: Noise, query: &str, token: &str, after_ms: i64) -> Option<Vec<u64>> {
    let bytes = base64url_decode(token)?;
    if bytes.len() % 8 != 0 {
        return None;
    }
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|chunk| u64::from_le_bytes(chunk.try_into().expect("chunks are of 8 bytes")))
        .collect();
    let [expected, issued, cursor @ ..] = words.as_slice() else {
        return None;
    };
    (*expected == check(noise, query, *issued, cursor) && *issued as i64 > after_ms).then(|| cursor.to_vec())
}

fn check(noise: Noise, query: &str, issued: u64, cursor: &[u64]) -> u64 {
    cursor.iter().fold(noise.with_text(query).with(issued), |noise, part| noise.with(*part)).value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_belongs_to_its_query_and_ends() {
        let noise = Noise::new(7);
        let token = seal(noise, "query", &[1, 2, 3]);
        let minute = calendar::now_ms() - 60_000;
        assert_eq!(open(noise, "query", &token, minute), Some(vec![1, 2, 3]));
        assert_eq!(open(noise, "another", &token, minute), None);
        assert_eq!(open(noise, "query", &token, calendar::now_ms()), None);
        assert_eq!(open(noise, "query", &token[..token.len() - 2], minute), None);
        assert_eq!(open(noise, "query", "junk", minute), None);
    }

    #[test]
    fn access_tokens_live_and_can_be_revoked() {
        let mut tokens = AccessTokens::new(Noise::new(7));
        let scopes: Arc<[String]> = Arc::new(["chat".to_owned()]);
        let mut issue = |seconds| tokens.issue(Duration::from_secs(seconds), scopes.clone());
        let (one, two) = (issue(9), issue(0));
        assert_eq!(tokens.scopes_of(&one), Some(scopes.clone()));
        assert!(tokens.scopes_of(&two).is_none() && tokens.scopes_of("x").is_none());
        tokens.revoke(&one);
        assert!(tokens.scopes_of(&one).is_none());
    }
}
