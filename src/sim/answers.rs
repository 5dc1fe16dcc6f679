//! Responses worded as Zoom words them: JSON bodies, errors, rate limit refusals.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};

use super::calendar;
use super::encoding::push_json_string;
use super::limits::Verdict;

pub(super) fn raw(status: u16, headers: &[(String, String)], body: impl Into<Body>) -> Response<Body> {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    builder.body(body.into()).unwrap_or_else(|_| error(500, 500, "a scripted answer could not be formed"))
}

pub(super) fn json_body(status: u16, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json;charset=UTF-8"));
    response
}

pub(super) fn no_such_session() -> Response<Body> {
    error(404, 5301, "The session does not exist.")
}

pub(super) fn error(status: u16, code: u32, message: &str) -> Response<Body> {
    let mut body = format!("{{\"code\":{code},\"message\":");
    push_json_string(&mut body, message);
    body.push('}');
    json_body(status, body)
}

pub(super) fn oauth_error(reason: &str, error: &str) -> Response<Body> {
    json_body(400, format!("{{\"reason\":\"{reason}\",\"error\":\"{error}\"}}"))
}

pub(super) fn too_many(verdict: Verdict, qps: u32, count: u64, midnight_ms: i64) -> Response<Body> {
    if verdict == Verdict::Daily {
        let message = "You have reached the maximum daily rate limit for this API. Refer to the response header for details.";
        let mut response = error(429, 429, message);
        let mut midnight = String::new();
        calendar::push_instant(&mut midnight, midnight_ms);
        let fields = response.headers_mut();
        fields.insert("x-ratelimit-type", HeaderValue::from_static("Daily-limit"));
        fields.insert(
            header::RETRY_AFTER,
            HeaderValue::from_str(&midnight).expect("an instant is plain ASCII"),
        );
        return response;
    }
    let message = "You have reached the maximum per-second rate limit for this API. Try again later.";
    let mut response = error(429, 429, message);
    // Observed: Zoom sends these with and without the type, and often without Retry-After.
    if count.is_multiple_of(2) {
        response.headers_mut().insert("x-ratelimit-type", HeaderValue::from_static("QPS"));
        response.headers_mut().insert("x-ratelimit-limit", HeaderValue::from(qps));
    }
    response
}
