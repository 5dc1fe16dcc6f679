//! Who may call: API keys as bearer tokens, compared in constant time; failed attempts are counted and logged.
//!
//! Without keys, `config` allows loopback only, and only requests addressed to this machine are admitted, so that a web page in
//! the operator's browser cannot reach the service through a domain of its own (DNS rebinding).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::AppState;
use super::problem::Problem;
use super::recent::Recent;

/// One key; only its digest is kept. The name is what job records, logs and the audit trail show.
#[derive(Debug, Clone)]
struct ApiKey {
    name: Option<String>,
    digest: [u8; 32],
    rights: Rights,
}

/// What the holder of a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    All,
    /// Read and download, but change nothing.
    ReadOnly,
}

/// All valid keys; there may be several, so that they can be rotated one by one.
#[derive(Debug, Clone, Default)]
pub struct ApiKeys(Vec<ApiKey>);

/// The caller, as passed to handlers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The key's name; `None` for a key without one, or when there are no keys.
    pub name: Option<String>,
    pub rights: Rights,
}

/// The other end of the connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

impl ApiKeys {
    /// Reads `API_KEYS`: comma-separated, each `key` or `name:key`.
    pub fn parse(text: &str, rights: Rights) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(|part| ApiKey::parse(part, rights)).collect::<Result<_, _>>().map(Self)
    }

    /// Reads a file of keys: one per line, `key` or `name:key`, preceded by `read-only ` if it may only read; empty lines and
    /// lines that begin with `#` are skipped.
    pub fn parse_file(text: &str) -> Result<Self, String> {
        // Windows editors put a byte order mark at the start.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().map(str::trim).enumerate();
        lines
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(index, line)| {
                let (key, rights) = match line.strip_prefix("read-only ") {
                    Some(key) => (key.trim(), Rights::ReadOnly),
                    None => (line, Rights::All),
                };
                ApiKey::parse(key, rights).map_err(|error| format!("line {}: {error}", index + 1))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Adds keys. An error if one of them is there already, even under another name or with other rights.
    pub fn add(&mut self, more: Self) -> Result<(), String> {
        for key in more.0 {
            if self.0.iter().any(|known| known.digest == key.digest) {
                return Err("a key is listed twice".to_owned());
            }
            self.0.push(key);
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares with every key, in a time that depends on neither key nor candidate.
    fn find(&self, candidate: &str) -> Option<Caller> {
        let candidate: [u8; 32] = Sha256::digest(candidate.as_bytes()).into();
        let mut found = None;
        for key in &self.0 {
            if bool::from(key.digest.ct_eq(&candidate)) {
                found = Some(Caller { name: key.name.clone(), rights: key.rights });
            }
        }
        found
    }
}

impl ApiKey {
    fn parse(text: &str, rights: Rights) -> Result<Self, String> {
        let (name, secret) = match text.split_once(':') {
            Some((name, secret)) => (Some(name.to_owned()), secret),
            None => (None, text),
        };
        if secret.len() < 16 {
            return Err("each key must have at least 16 characters".to_owned());
        }
        let is_printed = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'');
        if !text.chars().all(is_printed) || name.as_ref().is_some_and(String::is_empty) {
            return Err("each key must be `key` or `name:key`, of printable ASCII without spaces and quotes"
                .to_owned());
        }
        Ok(Self { name, digest: Sha256::digest(secret.as_bytes()).into(), rights })
    }
}

/// The most wrong keys that an address may send in a minute before it is told to wait.
const MOST_FAILURES: u32 = 20;
const A_MINUTE: Duration = Duration::from_secs(60);

/// Counts wrong keys by address. A valid key is accepted whatever the count: keys are too long to be guessed, and one careless
/// client behind a proxy must not lock out the others.
#[derive(Debug)]
pub struct FailedAttempts(Recent<IpAddr>);

impl Default for FailedAttempts {
    fn default() -> Self {
        Self(Recent::new(A_MINUTE))
    }
}

impl FailedAttempts {
    /// Counts a wrong key. Returns how long the address must wait if it has exceeded this minute's limit.
    fn add(&self, address: IpAddr, now: Duration) -> Option<Duration> {
        let (left, count) = self.0.count(network(address), now)?;
        // Logged often enough to be noticed, not often enough to fill a disk.
        if count == 1 || count == MOST_FAILURES {
            tracing::warn!(%address, attempts_this_minute = count, "refused a caller without a valid key");
        }
        (count > MOST_FAILURES).then_some(left)
    }
}

/// The addresses that count as one caller: an IPv6 caller has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Admits a request with a valid key or, when there are no keys, one that is addressed to this machine.
pub async fn require_key(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let caller = if state.api_keys.is_empty() {
        match check_local_request(request.uri(), request.headers()) {
            Ok(()) => Caller { name: None, rights: Rights::All },
            Err(problem) => return problem.into_response(),
        }
    } else {
        let candidate = bearer(request.headers());
        match candidate.and_then(|candidate| state.api_keys.find(candidate)) {
            Some(caller) => caller,
            // A request without a key is not a guess: browsers and health checks send such requests.
            None => return refuse(&state, candidate.and_then(|_| peer(&request))),
        }
    };
    let may = caller.rights == Rights::All || [Method::GET, Method::HEAD].contains(request.method());
    let mut response = if may {
        request.extensions_mut().insert(caller.clone());
        next.run(request).await
    } else {
        Problem::new(
            StatusCode::FORBIDDEN,
            "read-only-key",
            "This key may only read",
            "use a key with full rights; this one is configured as read-only",
        )
        .into_response()
    };
    // For the audit trail, which is the outer layer.
    response.extensions_mut().insert(caller);
    response
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

pub(super) fn peer(request: &Request) -> Option<SocketAddr> {
    request.extensions().get::<Peer>().map(|peer| peer.0)
}

fn refuse(state: &AppState, guesser: Option<SocketAddr>) -> Response {
    let count = |peer: SocketAddr| state.failed_attempts.add(peer.ip(), state.clock.elapsed());
    if let Some(wait) = guesser.and_then(count) {
        let problem = Problem {
            retry_after: Some(wait),
            ..Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-attempts",
                "Too many wrong keys",
                "this address has sent too many wrong keys; a valid key is accepted at any time",
            )
        };
        return problem.into_response();
    }
    let mut response = Problem::new(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        "A valid API key is needed",
        "send `Authorization: Bearer <key>` with one of the service's API_KEYS, without its name",
    )
    .into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Without keys, whoever reaches loopback may do everything. A browser reaches it on behalf of any web page, so the `Host` must
/// name this machine (else it is the page's own domain, made to resolve here) and an `Origin` must be our own. A proxy on this
/// machine reaches it on behalf of anybody, and may put this machine's name into `Host`.
fn check_local_request(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = uri.authority().map(axum::http::uri::Authority::as_str).or_else(|| text(header::HOST));
    let is_local = |authority: &str| {
        let name = authority
            .rsplit_once(':')
            .filter(|(_, port)| !port.ends_with(']'))
            .map_or(authority, |(name, _)| name);
        let name = name.trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    let host_is_ours = host.is_some_and(is_local);
    let origin_is_ours = text(header::ORIGIN).is_none_or(|origin| {
        host.is_some_and(|host| origin.split_once("://").is_some_and(|(_, rest)| rest == host))
    });
    let is_forwarded = ["forwarded", "x-forwarded-for"].into_iter().any(|name| headers.contains_key(name));
    if host_is_ours && origin_is_ours && !is_forwarded {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "not-this-machine",
        "Without API keys, only this machine can use the service",
        "call the service as localhost or 127.0.0.1, not from a web page or through a proxy; or set API_KEYS",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_with_and_without_names() {
        let mut keys = ApiKeys::parse("audit:0123456789abcdef, fedcba9876543210 ,", Rights::All).unwrap();
        keys.add(ApiKeys::parse("viewer:aaaaaaaaaaaaaaaa", Rights::ReadOnly).unwrap()).unwrap();
        let caller = |name: Option<&str>, rights| Some(Caller { name: name.map(str::to_owned), rights });
        assert_eq!(keys.find("0123456789abcdef"), caller(Some("audit"), Rights::All));
        assert_eq!(keys.find("fedcba9876543210"), caller(None, Rights::All));
        assert_eq!(keys.find("aaaaaaaaaaaaaaaa"), caller(Some("viewer"), Rights::ReadOnly));
        assert_eq!(keys.find("0123456789abcdeF"), None);
        assert_eq!(keys.find(""), None);
        assert!(ApiKeys::parse("", Rights::All).unwrap().is_empty());
        for bad in ["short", ":0123456789abcdef", "na me:0123456789abcdef", "name:0123456789 abcdef"] {
            assert!(ApiKeys::parse(bad, Rights::All).is_err(), "{bad}");
        }
        assert!(!format!("{keys:?}").contains("0123456789abcdef"));
    }

    #[test]
    fn a_file_holds_one_key_a_line() {
        let text = "# rotated in May\nci:0123456789abcdef\n\n  read-only viewer:aaaaaaaaaaaaaaaa\n";
        let keys = ApiKeys::parse_file(text).unwrap();
        assert_eq!(keys.find("0123456789abcdef").unwrap().rights, Rights::All);
        assert_eq!(keys.find("aaaaaaaaaaaaaaaa").unwrap().rights, Rights::ReadOnly);
        let error = ApiKeys::parse_file("ci:0123456789abcdef\nshort").unwrap_err();
        assert_eq!(error, "line 2: each key must have at least 16 characters");
    }

    #[test]
    fn an_address_is_told_to_wait_after_twenty_wrong_keys_and_others_are_not() {
        let attempts = FailedAttempts::default();
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for _ in 0..MOST_FAILURES {
            assert_eq!(attempts.add(one, Duration::ZERO), None);
        }
        assert_eq!(attempts.add(one, Duration::ZERO), Some(A_MINUTE));
        assert_eq!(attempts.add(other, Duration::ZERO), None);
        assert_eq!(attempts.add(one, A_MINUTE), None);
    }

    #[test]
    fn without_keys_the_host_must_be_this_machine_and_the_origin_our_own() {
        let check = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            check_local_request(&Uri::from_static("/v1/jobs"), &headers).is_ok()
        };
        for host in ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "[::1]", "LOCALHOST:1"] {
            assert!(check(host, None), "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "192.0.2.1:8080"] {
            assert!(!check(host, None), "{host}");
        }
        assert!(check("localhost:8080", Some("http://localhost:8080")));
        assert!(!check("localhost:8080", Some("http://evil.example")));
        assert!(!check("localhost:8080", Some("null")));
    }
}
