//! HTTP as every call to Zoom uses it: the client and what it takes from the environment, bodies of bounded size, error
//! descriptions that reveal no secrets.

use std::net::Ipv4Addr;

use bytes::{Bytes, BytesMut};

use super::client::ZoomSettings;
use super::error::RequestError;

/// The one way to make an HTTP client: with timeouts, without following redirects, one answer at a time on each connection.
pub(super) fn http_client(settings: &ZoomSettings) -> Result<reqwest::Client, NoClient> {
    let builder = reqwest::Client::builder();
    let bases = [&settings.api_base, &settings.oauth_base];
    // A simulator on this machine is not behind a proxy.
    let builder = if bases.into_iter().all(|base| is_local(base)) { builder.no_proxy() } else { builder };
    builder
        .user_agent(concat!("zoom-chat-reports/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(settings.connect_timeout)
        .timeout(settings.request_timeout)
        .read_timeout(settings.idle_timeout)
        // A redirect would carry the bearer token to a host that may not be Zoom's.
        .redirect(reqwest::redirect::Policy::none())
        // HTTP/2 would put all answers on one connection with one flow-control window, where those waiting for room hold up
        // those being read (hyperium/hyper#2899), and a broken connection ends all of them.
        .http1_only()
        .tcp_nodelay(true)
        .build()
        .map_err(|error| NoClient(with_cause("the HTTP client could not be created", &error)))
}

/// The system lacks something that a client needs: certificates, perhaps.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoClient(String);

pub fn is_http(url: &reqwest::Url) -> bool {
    ["http", "https"].contains(&url.scheme()) && url.has_host()
}

const CERTIFICATES: &str = "SSL_CERT_FILE";

/// What is wrong with the environment variables that the client reads by itself and would ignore if they are invalid.
pub fn wrong_environment() -> impl Iterator<Item = String> {
    let names =
        ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", CERTIFICATES];
    names.into_iter().filter_map(|name| {
        // An empty proxy is none.
        let value = std::env::var_os(name).filter(|value| !value.is_empty() || name == CERTIFICATES)?;
        let trouble =
            value.to_str().map_or(Some("must be UTF-8".to_owned()), |value| trouble_with(name, value));
        Some(format!("{name} {}", trouble?))
    })
}

fn trouble_with(name: &str, value: &str) -> Option<String> {
    if name == CERTIFICATES {
        return match std::fs::read(value) {
            Ok(file) if file.windows(b"BEGIN CERTIFICATE".len()).any(|some| some == b"BEGIN CERTIFICATE") => {
                None
            }
            Ok(_) => Some(format!("{value} contains no PEM certificate")),
            Err(error) => Some(format!("{value:?} cannot be read: {error}")),
        };
    }
    let url = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    // Without the value: it may hold a password.
    let is_proxy = reqwest::Url::parse(&url).is_ok_and(|url| is_http(&url));
    (!is_proxy).then(|| "must be the http or https URL of a proxy".to_owned())
}

/// Whether requests to `base` would cross a network unencrypted.
pub fn is_cleartext(base: &str) -> bool {
    !is_local(base) && reqwest::Url::parse(base).is_ok_and(|url| url.scheme() == "http")
}

fn is_local(base: &str) -> bool {
    reqwest::Url::parse(base).is_ok_and(|url| match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback()),
        None => false,
    })
}

/// Reads a body of at most `most` bytes.
pub(super) async fn collect(mut response: reqwest::Response, most: usize) -> Result<Bytes, RequestError> {
    if response.content_length().is_some_and(|length| length > most as u64) {
        return Err(RequestError::TooLarge);
    }
    let mut body = BytesMut::with_capacity(response.content_length().unwrap_or(0) as usize);
    while let Some(chunk) =
        response.chunk().await.map_err(|error| RequestError::NoAnswer(describe(&error)))?
    {
        if body.len() + chunk.len() > most {
            return Err(RequestError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// What went wrong in transit, without the URL (it holds session ids) and without the client's own prefixes.
pub(super) fn describe(error: &reqwest::Error) -> String {
    let what = if error.is_timeout() {
        "timed out"
    } else if error.is_connect() {
        "could not connect"
    } else if error.is_body() || error.is_decode() {
        "the answer was cut off"
    } else {
        "no answer"
    };
    with_cause(what, error)
}

/// A message, followed by the root cause of an error.
fn with_cause(what: &str, error: &reqwest::Error) -> String {
    let mut source = std::error::Error::source(error);
    let mut deepest = None;
    while let Some(inner) = source {
        deepest = Some(inner.to_string());
        source = inner.source();
    }
    deepest.map_or_else(|| what.to_owned(), |deepest| format!("{what}: {deepest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine() {
        for (base, is_open) in [
            ("https://api.zoom.us/v2", false),
            ("http://api.zoom.us/v2", true),
            ("http://localhost:9090", false),
            ("http://127.0.0.2:9090", false),
            ("http://127.0.0.1.example", true),
        ] {
            assert_eq!(is_cleartext(base), is_open, "{base}");
        }
    }

    #[test]
    fn what_the_http_client_would_pass_over_is_named() {
        for (name, value, is_fine) in [
            ("HTTPS_PROXY", "http://user:pass@proxy:3128", true),
            ("HTTPS_PROXY", "proxy:3128", true),
            ("HTTPS_PROXY", "ht!tp://x y", false),
            ("all_proxy", "socks5://proxy", false),
            ("SSL_CERT_FILE", "/nowhere", false),
            ("SSL_CERT_FILE", "/dev/null", false),
        ] {
            assert_eq!(trouble_with(name, value).is_none(), is_fine, "{name} {value}");
        }
    }
}
