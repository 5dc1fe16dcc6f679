//! The jobs resource: create, list, get and wait, cancel, retry, delete, failures.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::auth::Caller;
use super::body::{self, JobRequest, Submitted};
use super::conditions::is_known;
use super::parameters::{
    NoParameters, Parameters, PathId, bad_parameter, cursor_of, idempotency_key, page_size, parse_cursor,
    parse_wait,
};
use super::problem::Problem;
use super::view::{JobView, State as JobStateView};
use crate::archive::FailureLine;
use crate::jobs::{Job, JobState, ListFilter, Listed};

/// The time limit for receiving a whole body, however slowly it arrives.
const LONGEST_BODY: Duration = Duration::from_secs(30);

fn accepted(job: &Job) -> Response {
    let view = JobView::from(job);
    let location = HeaderValue::from_str(&view.links.own).expect("a path with an id is plain ASCII");
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(view)).into_response()
}

/// Submit a job
///
/// Stores the job and returns at once; it runs in the background. With an `Idempotency-Key`, repeating the same request
/// returns the same job, not a second one.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs", operation_id = "create_job",
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]([ -~]*[!-~])?$",
        description = "Any text you choose, 1 to 255 printable ASCII characters; repeating it with the same body and API key name returns the same job")),
    request_body(content = JobRequest, content_type = "application/json"),
    responses(
        (status = 202, description = "The job, stored and about to run; for a repeated `Idempotency-Key` the earlier one, which may have ended", body = JobView, headers(("Location" = String, description = "URL of the job"))),
        (status = 400, description = "The body cannot be read as JSON, or a header or parameter is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The idempotency key was used with another request", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is over 1 MiB", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not declared as application/json", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are missing, unknown or wrong; all are named", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many jobs are queued; see Retry-After", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The service's data directory is gone", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "The service's disk is full", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn create(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Parameters(NoParameters {}): Parameters<NoParameters>,
    request: Request,
) -> Result<Response, Problem> {
    require_json(request.headers())?;
    let key = idempotency_key(request.headers())?;
    let body = tokio::select! {
        body = Bytes::from_request(request, &state) => body.map_err(|rejection| refused_body(&rejection))?,
        () = state.clock.sleep(LONGEST_BODY) => return Err(broken_body("the body took too long to arrive")),
    };
    let Submitted { request, out_of_reach } = body::read(&body, state.clock.today())?;
    if let Some(problem) = out_of_reach {
        // If this repeats a request from before midnight, its job may exist already.
        let known = state.jobs.known(&request, caller.name.as_deref(), key.as_deref()).await?;
        return known.map(|job| accepted(&job)).ok_or(problem);
    }
    let job = state.jobs.create(request, caller.name, key.as_deref()).await?;
    Ok(accepted(&job))
}

fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let declared =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = declared.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported-media-type",
        "The body must be JSON",
        "send `Content-Type: application/json`",
    ))
}

fn refused_body(rejection: &BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-too-large",
            "The body is too large",
            "a body may have at most 1 MiB",
        );
    }
    broken_body("the body was cut off, or stopped arriving for ten seconds")
}

fn broken_body(detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "broken-body", "The body could not be read", detail)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only jobs in this state.
    #[param(value_type = Option<JobStateView>)]
    state: Option<String>,
    /// Page size, 1 to 200; other numbers are clamped. 50 by default.
    #[param(value_type = Option<i64>)]
    limit: Option<String>,
    /// `next_cursor` of the previous page.
    #[param(pattern = "^j(0|[1-9a-f][0-9a-f]{0,15})$")]
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobPage {
    items: Vec<JobView>,
    /// For the next page; null on the last.
    next_cursor: Option<String>,
}

/// List jobs
///
/// Newest first, one page at a time. A page may hold fewer jobs than `limit`, or none: only a null `next_cursor` marks the end.
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs", operation_id = "list_jobs", params(ListQuery),
    responses(
        (status = 200, description = "A page of jobs", body = JobPage),
        (status = 400, description = "A parameter is wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(
    State(state): State<AppState>,
    Parameters(query): Parameters<ListQuery>,
) -> Result<Json<JobPage>, Problem> {
    let limit = page_size(query.limit.as_deref())?;
    let wanted = match query.state.as_deref() {
        None => None,
        Some(text) => Some(JobState::parse(text).ok_or_else(|| {
            let all: Vec<_> = JobState::ALL.into_iter().map(JobState::as_str).collect();
            bad_parameter("state", &format!("must be one of {}", all.join(", ")))
        })?),
    };
    let before = parse_cursor('j', query.cursor.as_deref())?;
    let Listed { jobs, next } = state.jobs.list(ListFilter { state: wanted, before, limit }).await?;
    let next_cursor = next.map(|number| cursor_of('j', number));
    Ok(Json(JobPage { items: jobs.iter().map(JobView::from).collect(), next_cursor }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// Wait up to this long (at most 60s) for the job to change, for example `30s`. With `If-None-Match`: answers at once if it
    /// has changed already, and with 304 if it has not changed by then. Without: answers at once if the job has ended.
    #[param(pattern = "^[0-9]{1,19}(ms|s|m)?$")]
    wait: Option<String>,
}

/// Get a job
///
/// Returns the job with its progress. With `wait`, answers when the job changes (long polling).
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "get_job",
    params(("id" = uuid::Uuid, Path, description = "The job's id"), WaitQuery,
        ("If-None-Match" = Option<String>, Header, description = "The ETag of an earlier answer")),
    responses(
        (status = 200, description = "The job", body = JobView, headers(("ETag" = String, description = "Changes with the job"))),
        (status = 304, description = "The job has not changed"),
        (status = 400, description = "A parameter is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such job", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn get(
    State(state): State<AppState>,
    PathId(id): PathId,
    Parameters(query): Parameters<WaitQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wait = query.wait.as_deref().map(parse_wait).transpose()?;
    let mut follower = state.jobs.follow(id);
    let mut shown = Shown::of(&state.jobs.get(id).await?);
    let brings_none = !headers.contains_key(header::IF_NONE_MATCH);
    if let Some(wait) = wait
        && (is_known(&headers, &shown.etag) || brings_none && !shown.is_final)
        // If too many are waiting already, this one is answered at once.
        && let Ok(_place) = state.long_polls.try_acquire()
    {
        let seen = shown.etag.clone();
        let deadline = state.clock.sleep(wait);
        tokio::pin!(deadline);
        while shown.etag == seen {
            tokio::select! {
                () = &mut deadline => break,
                () = state.stopping.cancelled() => break,
                () = follower.changed() => shown = Shown::of(&state.jobs.get(id).await?),
            }
        }
    }
    if is_known(&headers, &shown.etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, shown.etag)]).into_response());
    }
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::ETAG, shown.etag), (header::CONTENT_TYPE, json)], shown.body).into_response())
}

/// A job's representation and its validator.
struct Shown {
    body: Vec<u8>,
    etag: HeaderValue,
    is_final: bool,
}

impl Shown {
    fn of(job: &Job) -> Self {
        let body = serde_json::to_vec(&JobView::from(job)).expect("a view is plain data");
        let hash = Sha256::digest(&body);
        let digits = hex::encode(&hash[..8]);
        Self {
            body,
            etag: HeaderValue::from_str(&format!("\"{digits}\"")).expect("hex digits are plain ASCII"),
            is_final: job.state.is_final(),
        }
    }
}

/// Cancel a job
///
/// Stops the job within a second or two. Received data is kept, and `retry` resumes it.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/cancel", tag = "jobs", operation_id = "cancel_job",
    params(("id" = uuid::Uuid, Path, description = "The job's id")),
    responses(
        (status = 202, description = "The job is cancelled, or will be within moments", body = JobView, headers(("Location" = String, description = "URL of the job"))),
        (status = 400, description = "This operation takes no parameters", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The job has already ended, in a state other than `cancelled`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The job has ended, but this cannot be recorded yet; see Retry-After", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "The service's disk is full", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn cancel(
    State(state): State<AppState>,
    PathId(id): PathId,
    Parameters(NoParameters {}): Parameters<NoParameters>,
) -> Result<Response, Problem> {
    Ok(accepted(&state.jobs.cancel(id).await?))
}

/// Retry a job
///
/// Fetches only the failed or missing parts of a failed, cancelled or incomplete job and rebuilds the archive; the old one
/// stays until then. Also repairs a completed job whose archive is lost or altered; to find out, it reads the archive in full
/// before it answers.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/retry", tag = "jobs", operation_id = "retry_job",
    params(("id" = uuid::Uuid, Path, description = "The job's id")),
    responses(
        (status = 202, description = "The job is queued again", body = JobView, headers(("Location" = String, description = "URL of the job"))),
        (status = 400, description = "This operation takes no parameters", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The job is active, has expired, or is completed with an intact archive", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The service's data directory is gone, or the job has ended but this cannot be recorded yet", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Another archive is being checked against its hash; see Retry-After", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "The service's disk is full", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn retry(
    State(state): State<AppState>,
    PathId(id): PathId,
    Parameters(NoParameters {}): Parameters<NoParameters>,
) -> Result<Response, Problem> {
    Ok(accepted(&state.jobs.retry(id).await?))
}

/// Delete a job
///
/// Removes the job and its files for good.
#[utoipa::path(
    delete, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "delete_job",
    params(("id" = uuid::Uuid, Path, description = "The job's id")),
    responses(
        (status = 204, description = "The job is deleted"),
        (status = 400, description = "This operation takes no parameters", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The job is running; cancel it first", body = Problem, content_type = "application/problem+json"),
        (status = 500, description = "The job is deleted, but some of its files could not be removed (`files-left`)", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The service's data directory is gone, or the job has ended but this cannot be recorded yet", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "The service's disk is full", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete(
    State(state): State<AppState>,
    PathId(id): PathId,
    Parameters(NoParameters {}): Parameters<NoParameters>,
) -> Result<StatusCode, Problem> {
    state.jobs.delete(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct FailuresQuery {
    /// Page size, 1 to 200; other numbers are clamped. 50 by default.
    #[param(value_type = Option<i64>)]
    limit: Option<String>,
    /// `next_cursor` of the previous page.
    #[param(pattern = "^f(0|[1-9a-f][0-9a-f]{0,15})$")]
    cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FailurePage {
    #[schema(value_type = Vec<FailureView>)]
    items: Vec<FailureLine>,
    /// For the next page; null on the last.
    next_cursor: Option<String>,
}

/// Something that is missing from the archive, and why.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FailureView {
    /// `session`: days of one session; `listing`: days whose sessions could not be listed.
    what: String,
    session_id: Option<String>,
    #[schema(value_type = String, format = Date)]
    window_from: String,
    #[schema(value_type = String, format = Date)]
    window_to: String,
    /// First day missing.
    #[schema(value_type = String, format = Date)]
    from: String,
    /// Last day missing.
    #[schema(value_type = String, format = Date)]
    to: String,
    /// Stable and machine-readable.
    #[schema(example = "server-error")]
    code: String,
    /// The HTTP status of Zoom's last answer.
    status: Option<u16>,
    /// Zoom's own error code.
    zoom_code: Option<i64>,
    message: String,
    attempts: u32,
    #[schema(value_type = String, format = DateTime)]
    failed_at: String,
    /// Messages of these days received before the failure; they are in the archive.
    messages_captured: u64,
}

/// List failures
///
/// Every part that failed, with Zoom's answer, a page at a time. Empty for a completed job that lacks nothing. If a job
/// stopped early, the parts it had not reached are missing too, but are not listed: `progress` shows how many there are.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/failures", tag = "jobs", operation_id = "list_failures",
    params(("id" = uuid::Uuid, Path, description = "The job's id"), FailuresQuery),
    responses(
        (status = 200, description = "A page of failures", body = FailurePage),
        (status = 400, description = "A parameter is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The capture is damaged; `retry` fetches the damaged parts again", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The job has expired", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "The service's disk is full", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn failures(
    State(state): State<AppState>,
    PathId(id): PathId,
    Parameters(query): Parameters<FailuresQuery>,
) -> Result<Json<FailurePage>, Problem> {
    let limit = page_size(query.limit.as_deref())?;
    let after = parse_cursor('f', query.cursor.as_deref())?;
    let (items, next) = state.jobs.failures(id, after, limit).await?;
    Ok(Json(FailurePage { items, next_cursor: next.map(|number| cursor_of('f', number)) }))
}
