//! Who may call: API keys as bearer tokens, compared in constant time.
//!
//! Without keys there is nothing to compare; `config` then allows loopback only.

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::AppState;
use super::problem::Problem;

/// One key; the name is what job records and logs show.
#[derive(Debug, Clone)]
pub struct ApiKey {
    pub name: Option<String>,
    pub secret: SecretString,
}

/// All keys that are good; several at a time, so that they can be changed one by one.
#[derive(Debug, Clone, Default)]
pub struct ApiKeys(Vec<ApiKey>);

/// The caller's key name, as handed to handlers.
#[derive(Debug, Clone, Default)]
pub struct Caller(pub Option<String>);

impl ApiKeys {
    /// Reads `API_KEYS`: comma-separated, each `key` or `name:key`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, secret) = match part.split_once(':') {
                Some((name, secret)) => (Some(name.to_owned()), secret),
                None => (None, part),
            };
            if secret.len() < 16 {
                return Err("each key must have at least 16 characters".to_owned());
            }
            if secret.chars().any(|c| !c.is_ascii_graphic()) || name.as_ref().is_some_and(String::is_empty) {
                return Err(
                    "each key must be `key` or `name:key`, of printable ASCII without spaces".to_owned()
                );
            }
            keys.push(ApiKey { name, secret: secret.into() });
        }
        Ok(Self(keys))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares with every key, in a time that depends on neither key nor candidate.
    fn find(&self, candidate: &str) -> Option<Caller> {
        let candidate = Sha256::digest(candidate.as_bytes());
        let mut found = None;
        for key in &self.0 {
            let digest = Sha256::digest(key.secret.expose_secret().as_bytes());
            if bool::from(digest[..].ct_eq(&candidate[..])) {
                found = Some(Caller(key.name.clone()));
            }
        }
        found
    }
}

/// Lets a request pass with a good key, or when there are no keys.
pub async fn require_key(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    if state.api_keys.is_empty() {
        request.extensions_mut().insert(Caller::default());
        return next.run(request).await;
    }
    let candidate = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    if let Some(caller) = candidate.and_then(|candidate| state.api_keys.find(candidate)) {
        request.extensions_mut().insert(caller);
        next.run(request).await
    } else {
        tracing::warn!(path = request.uri().path(), sent_a_key = candidate.is_some(), "refused a caller");
        let mut response = Problem::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "A valid API key is needed",
            "send `Authorization: Bearer <key>` with one of the service's API_KEYS",
        )
        .into_response();
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_with_and_without_names() {
        let keys = ApiKeys::parse("audit:0123456789abcdef, fedcba9876543210 ,").unwrap();
        assert_eq!(keys.find("0123456789abcdef").unwrap().0.as_deref(), Some("audit"));
        assert_eq!(keys.find("fedcba9876543210").unwrap().0, None);
        assert!(keys.find("0123456789abcdeF").is_none());
        assert!(keys.find("").is_none());
        assert!(ApiKeys::parse("").unwrap().is_empty());
        assert!(ApiKeys::parse("short").is_err());
        assert!(ApiKeys::parse(":0123456789abcdef").is_err());
        assert!(!format!("{keys:?}").contains("0123456789abcdef"));
    }
}
