//! Conditional requests: whether a caller already has a representation, or wants only a certain one.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// Whether `If-None-Match` lists this ETag, by weak comparison (RFC 9110, 13.1.2).
pub(super) fn is_known(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    is_listed(headers, header::IF_NONE_MATCH, etag, |item| item.strip_prefix("W/").unwrap_or(item))
}

/// False if `If-Match` is present and does not list this ETag, by strong comparison (RFC 9110, 13.1.1).
pub(super) fn is_expected(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    !headers.contains_key(header::IF_MATCH) || is_listed(headers, header::IF_MATCH, etag, |item| item)
}

/// Whether this header lists an ETag; it may have several lines.
fn is_listed(headers: &HeaderMap, name: HeaderName, etag: &HeaderValue, compared: fn(&str) -> &str) -> bool {
    let lists = headers.get_all(name).into_iter().filter_map(|list| list.to_str().ok());
    let mut items = lists.flat_map(|list| list.split(',')).map(str::trim);
    items.any(|item| item == "*" || compared(item) == etag)
}
