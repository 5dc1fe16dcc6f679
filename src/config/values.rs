//! Values of settings: how each is parsed, and what it must be if that fails.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use axum::http::HeaderValue;
use jiff::{Span, SpanRelativeTo, Unit};
use secrecy::SecretString;

use crate::zoom::is_http;

/// Returns the base URL, or what it must be. The error does not quote it: it may hold a password.
pub(super) fn base_url(text: &str, usual: &str) -> Result<String, String> {
    let text = text.trim();
    match reqwest::Url::parse(text) {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            Err("must not contain a user name or password".to_owned())
        }
        Ok(url) if url.query().is_some() || url.fragment().is_some() => {
            Err("must not have a query or fragment".to_owned())
        }
        Ok(url) if is_http(&url) => Ok(text.to_owned()),
        _ => Err(format!("must be an http or https URL, such as {usual}")),
    }
}

/// Accepts `https://host` (or http), with or without a port, and nothing after it.
pub(super) fn origin_of(text: &str) -> Result<HeaderValue, String> {
    let wrong = || format!("CORS_ORIGINS must hold origins such as https://tools.example.org, not {text}");
    let url = reqwest::Url::parse(text).map_err(|_| wrong())?;
    if url.origin().ascii_serialization() != text || !["http", "https"].contains(&url.scheme()) {
        return Err(wrong());
    }
    HeaderValue::from_str(text).map_err(|_| wrong())
}

#[expect(clippy::unnecessary_wraps, reason = "clap's value parsers return results")]
pub(super) fn secret(text: &str) -> Result<SecretString, String> {
    Ok(text.trim().into())
}

pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be an IP address and a port, such as 127.0.0.1:8080".to_owned())
}

pub(super) fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "must be a whole number, and not too large".to_owned())
}

pub(super) fn decimal(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "must be a number, such as 0.5 or 20".to_owned())
}

/// `500ms`, `30s`, `12h`, `7d`; a day is 24 hours.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || "must be a time such as 500ms, 30s, 12h or 7d".to_owned();
    let span: Span = text.parse().map_err(|_| bad())?;
    let seconds = span.total((Unit::Second, SpanRelativeTo::days_are_24_hours())).map_err(|_| bad())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_words_people_use() {
        for (text, seconds) in [("500ms", 0.5), ("30s", 30.0), ("12h", 43_200.0), ("7d", 604_800.0)] {
            assert!((duration(text).unwrap().as_secs_f64() - seconds).abs() < 1e-9, "{text}");
        }
        assert!(duration("-5s").is_err() && duration("7").is_err());
    }
}
