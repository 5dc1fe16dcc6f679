//! HTTP as every call to Zoom uses it: the client, bodies of a bounded size, errors in words that tell no secrets.

use std::net::Ipv4Addr;

use bytes::{Bytes, BytesMut};

use super::client::ZoomSettings;
use super::outcome::Outcome;

/// The one way to make an HTTP client: with timeouts, without following redirects, a connection for each answer.
pub(super) fn http_client(settings: &ZoomSettings) -> Result<reqwest::Client, reqwest::Error> {
    let builder = reqwest::Client::builder();
    let bases = [&settings.api_base, &settings.oauth_base];
    // A simulator on this machine is not behind anybody's proxy.
    let builder = if bases.into_iter().all(|base| is_local(base)) { builder.no_proxy() } else { builder };
    builder
        .user_agent(concat!("zoom-chat-reports/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(settings.connect_timeout)
        .timeout(settings.request_timeout)
        .read_timeout(settings.idle_timeout)
        // A redirect would carry the bearer token to a host that may not be Zoom's.
        .redirect(reqwest::redirect::Policy::none())
        // HTTP/2 would put all answers on one connection and under one window, where those that wait until there is room for
        // them hold up those that are being read (hyperium/hyper#2899), and a break ends all of them.
        .http1_only()
        .tcp_nodelay(true)
        .build()
}

fn is_local(base: &str) -> bool {
    reqwest::Url::parse(base).is_ok_and(|url| match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback()),
        None => false,
    })
}

/// A body of at most so many bytes.
pub(super) async fn collect(mut response: reqwest::Response, most: usize) -> Result<Bytes, Outcome> {
    if response.content_length().is_some_and(|length| length > most as u64) {
        return Err(Outcome::TooLarge);
    }
    let mut body = BytesMut::with_capacity(response.content_length().unwrap_or(0) as usize);
    while let Some(chunk) = response.chunk().await.map_err(|error| Outcome::NoAnswer(describe(&error)))? {
        if body.len() + chunk.len() > most {
            return Err(Outcome::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// What went wrong on the way, without the URL (it holds session ids) and without the client's own prefixes.
pub(super) fn describe(error: &reqwest::Error) -> String {
    let what = if error.is_timeout() {
        "timed out"
    } else if error.is_connect() {
        "could not connect"
    } else if error.is_body() || error.is_decode() {
        "the answer broke off"
    } else {
        "no answer"
    };
    let mut source = std::error::Error::source(error);
    let mut deepest = None;
    while let Some(inner) = source {
        deepest = Some(inner.to_string());
        source = inner.source();
    }
    deepest.map_or_else(|| what.to_owned(), |deepest| format!("{what}: {deepest}"))
}
