//! Downloading an archive: whole, conditionally, or by range.
//!
//! Conditional requests and ranges as in RFC 9110; the ETag is the archive's hash, so that an interrupted download is resumed
//! with exactly the same bytes or not at all.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::TryStreamExt;
use utoipa::ToSchema;

use super::AppState;
use super::conditions::{is_expected, is_known};
use super::file;
use super::parameters::PathId;
use super::problem::Problem;

const CACHE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// Bytes of a zip.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = Binary)]
pub(super) struct Zip(#[expect(dead_code, reason = "used only for its OpenAPI schema")] Vec<u8>);

/// Download the archive
///
/// One zip with everything the job captured. Supports ranges (`Range`, `If-Range`) and conditions (`If-Match`, `If-None-Match`); the ETag is strong.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/archive", tag = "archive", operation_id = "download_archive",
    params(("id" = uuid::Uuid, Path, description = "The job's id"),
        ("Range" = Option<String>, Header, description = "One range of bytes"),
        ("If-Range" = Option<String>, Header, description = "Apply the range only if the ETag is still this one"),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of a copy you have"),
        ("If-Match" = Option<String>, Header, description = "Send the archive only if the ETag is still this one")),
    responses(
        (status = 200, description = "The archive", body = Zip, content_type = "application/zip", headers(
            ("ETag" = String, description = "The archive's SHA-256"), ("Repr-Digest" = String, description = "RFC 9530"),
            ("Content-Disposition" = String, description = "A file name"), ("Accept-Ranges" = String, description = "bytes"))),
        (status = 206, description = "The requested range", body = Zip, content_type = "application/zip", headers(
            ("ETag" = String, description = "The archive's SHA-256"),
            ("Content-Range" = String, description = "Which bytes these are, and the total size"))),
        (status = 304, description = "Your copy is the same", headers(("ETag" = String, description = "The archive's SHA-256"))),
        (status = 404, description = "There is no such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The archive is not ready or is lost; the detail says what to do", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The job has expired and its archive is gone", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "The archive does not match `If-Match`", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many downloads at once; see Retry-After", body = Problem, content_type = "application/problem+json"),
        (status = 416, description = "The range lies outside the archive", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn download(
    State(state): State<AppState>,
    PathId(id): PathId,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (job, archive, file) = state.jobs.archive(id).await?;
    let etag = HeaderValue::from_str(&format!("\"{}\"", archive.sha256)).expect("hex digits are plain ASCII");
    if !is_expected(&headers, &etag) {
        return Err(Problem::new(
            StatusCode::PRECONDITION_FAILED,
            "precondition-failed",
            "The archive has changed",
            format!("its ETag is now {}", etag.to_str().unwrap_or_default()),
        ));
    }
    if is_known(&headers, &etag) {
        let fields = [(header::ETAG, etag), (header::CACHE_CONTROL, CACHE)];
        return Ok((StatusCode::NOT_MODIFIED, fields).into_response());
    }
    // A range is for GET only (RFC 9110, 14.2).
    let range =
        if method == Method::GET { wanted_range(&headers, &etag, archive.size) } else { Wanted::Whole };
    let (status, from, length) = match range {
        Wanted::Whole => (StatusCode::OK, 0, archive.size),
        Wanted::Part { from, to } => (StatusCode::PARTIAL_CONTENT, from, to - from + 1),
        Wanted::Unsatisfiable => return Ok(unsatisfiable(archive.size)),
    };
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        let place = state.downloads.clone().try_acquire_owned();
        let place = place.map_err(|_| Problem::too_many("downloads", "MAX_DOWNLOADS"))?;
        let log =
            move |error: &std::io::Error| tracing::error!(%error, job.id = %id, "a download was aborted");
        Body::from_stream(file::stream(file, from, length, place).inspect_err(log))
    };
    let request = &job.request;
    let name = format!("zoom-chat-reports_{}_{}_{}.zip", request.from, request.to, job.id);
    let mut response = (status, body).into_response();
    let fields = response.headers_mut();
    let text = |text: String| HeaderValue::from_str(&text).expect("dates, ids and numbers are plain ASCII");
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/zip"));
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    fields.insert(header::ETAG, etag);
    fields.insert(header::CONTENT_DISPOSITION, text(format!("attachment; filename=\"{name}\"")));
    fields.insert("repr-digest", text(format!("sha-256=:{}:", base64_of_hex(&archive.sha256))));
    fields.insert(header::CACHE_CONTROL, CACHE);
    if status == StatusCode::PARTIAL_CONTENT {
        fields.insert(
            header::CONTENT_RANGE,
            text(format!("bytes {from}-{}/{}", from + length - 1, archive.size)),
        );
    }
    Ok(response)
}

fn unsatisfiable(size: u64) -> Response {
    let mut response = Problem::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "range-not-satisfiable",
        "The range lies outside the archive",
        format!("the archive has {size} bytes"),
    )
    .into_response();
    let range = HeaderValue::from_str(&format!("bytes */{size}")).expect("a number is plain ASCII");
    response.headers_mut().insert(header::CONTENT_RANGE, range);
    response
}

fn base64_of_hex(text: &str) -> String {
    BASE64_STANDARD.encode(hex::decode(text).unwrap_or_default())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part { from: u64, to: u64 },
    Unsatisfiable,
}

fn wanted_range(headers: &HeaderMap, etag: &HeaderValue, size: u64) -> Wanted {
    let Some(range) = headers.get(header::RANGE).and_then(|range| range.to_str().ok()) else {
        return Wanted::Whole;
    };
    // If-Range needs a strong match; a date never matches, as there is no Last-Modified.
    match headers.get(header::IF_RANGE) {
        Some(condition) if condition != etag => Wanted::Whole,
        _ => parse_range(range, size),
    }
}

/// Parses a single byte range. Several ranges, other units and malformed ones get the whole archive, as RFC 9110 allows.
fn parse_range(range: &str, size: u64) -> Wanted {
    let bounds = range.trim().strip_prefix("bytes=").and_then(|spec| spec.trim().split_once('-'));
    let Some((Ok(first), Ok(last))) = bounds.map(|(first, last)| (bound(first), bound(last))) else {
        return Wanted::Whole;
    };
    match (first, last) {
        (None, None) => Wanted::Whole,
        (Some(from), Some(to)) if from > to => Wanted::Whole,
        (Some(from), _) if from >= size => Wanted::Unsatisfiable,
        (Some(from), to) => Wanted::Part { from, to: to.unwrap_or(u64::MAX).min(size - 1) },
        (None, Some(suffix)) if suffix == 0 || size == 0 => Wanted::Unsatisfiable,
        (None, Some(suffix)) => Wanted::Part { from: size.saturating_sub(suffix), to: size - 1 },
    }
}

/// A bound of a range, `None` if it is left out; an error if it is malformed.
fn bound(text: &str) -> Result<Option<u64>, ()> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(());
    }
    // A number that overflows lies beyond the end of any archive.
    Ok((!text.is_empty()).then(|| text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let part = |from, to| Wanted::Part { from, to };
        let table = [
            ("bytes=0-0", part(0, 0)),
            ("bytes=5-", part(5, 99)),
            ("bytes=-10", part(90, 99)),
            ("bytes=-1000", part(0, 99)),
            ("bytes=90-1000", part(90, 99)),
            ("bytes=99-99999999999999999999999", part(99, 99)),
            ("bytes=100-", Wanted::Unsatisfiable),
            ("bytes=100-200", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=5-4", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("lines=1-2", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
        ];
        for (text, expected) in table {
            assert_eq!(parse_range(text, 100), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_part_always_lies_inside(text in "(bytes=)?[0-9]{0,25}-?[0-9,]{0,25}", size in 0u64..1_000_000) {
            if let Wanted::Part { from, to } = parse_range(&text, size) {
                prop_assert!(from <= to && to < size);
            }
        }
    }
}
