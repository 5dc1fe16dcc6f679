//! Errors as users of the API see them: RFC 9457 problem documents with a stable `code`.
//!
//! Maps job errors to status codes; errors of HTTP itself are created where a request is refused.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::archive::ArchiveError;
use crate::jobs::JobsError;

/// One thing that is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// The field, with dots for nesting.
    #[schema(example = "from")]
    pub field: String,
    #[schema(
        example = "2025-01-01 is older than the six months that Zoom's reports cover; the oldest possible date is 2026-05-24"
    )]
    pub message: String,
}

/// An RFC 9457 problem document.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// A URN derived from the code.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    /// What happened, in plain words.
    pub detail: String,
    /// Stable and machine-readable.
    pub code: String,
    /// Every invalid field or parameter; only with status 400 and 422.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    #[serde(skip)]
    pub retry_after: Option<Duration>,
    /// What the caller is not told, for the log.
    #[serde(skip)]
    pub cause: Option<String>,
}

/// The cause of an error response, kept in its extensions for the log.
#[derive(Debug, Clone)]
pub struct Cause(pub String);

/// The type of a problem, derived from its code.
pub fn type_of(code: &str) -> String {
    format!("urn:zoom-chat-reports:problem:{code}")
}

impl Problem {
    pub fn new(status: StatusCode, code: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: type_of(code),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            code: code.to_owned(),
            errors: Vec::new(),
            retry_after: None,
            cause: None,
        }
    }

    pub fn caused_by(self, cause: impl std::fmt::Display) -> Self {
        Self { cause: Some(cause.to_string()), ..self }
    }

    pub fn invalid(status: StatusCode, errors: Vec<FieldError>) -> Self {
        let detail = errors.iter().map(|error| format!("{}: {}", error.field, error.message));
        let detail = detail.collect::<Vec<_>>().join("; ");
        Self { errors, ..Self::new(status, "invalid-request", "The request is not valid", detail) }
    }

    pub fn job_not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "job-not-found",
            "There is no such job",
            "no job has this id, or it was deleted",
        )
    }

    /// Every slot for a long-lived answer (a download, an event stream) is taken.
    pub fn too_many(what: &str, setting: &str) -> Self {
        Self::too_many_at_once(format!(
            "the limit of concurrent {what} ({setting}) is reached; try again later"
        ))
    }

    pub fn too_many_at_once(detail: impl Into<String>) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(10)),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-at-once", "Too many at once", detail)
        }
    }

    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Internal error",
            "for details, search the service's log for the x-request-id of this answer",
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (retry_after, cause) = (self.retry_after, self.cause.clone());
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if let Some(cause) = cause {
            response.extensions_mut().insert(Cause(cause));
        }
        response
    }
}

impl From<JobsError> for Problem {
    fn from(error: JobsError) -> Self {
        let detail = error.to_string();
        match error {
            JobsError::NotFound => Self::job_not_found(),
            JobsError::IdempotencyConflict => Self::new(
                StatusCode::CONFLICT,
                "idempotency-conflict",
                "The idempotency key is already in use",
                detail,
            ),
            JobsError::FilesLeft(error) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "files-left",
                "Some of the job's files could not be removed",
                "the job is deleted; removing the remaining files is retried every minute, and when you repeat this request",
            )
            .caused_by(error),
            JobsError::HashCheckRunning => Self::too_many_at_once(detail),
            JobsError::QueueFull { .. } => Self {
                retry_after: Some(Duration::from_secs(30)),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "queue-full", "Too many jobs are queued", detail)
            },
            JobsError::WrongState { .. } | JobsError::NothingToRetry => {
                Self::new(StatusCode::CONFLICT, "wrong-state", "The job's state does not allow this", detail)
            }
            JobsError::EndNotRecorded => Self {
                retry_after: Some(Duration::from_secs(5)),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "not-ready",
                    "The job's end is not recorded yet",
                    format!("{detail}; check DATA_DIR and its disk"),
                )
            },
            JobsError::ArchiveNotReady { state } => Self {
                retry_after: (!state.is_final()).then_some(Duration::from_secs(5)),
                ..Self::new(
                    StatusCode::CONFLICT,
                    "archive-not-ready",
                    "The archive is not ready",
                    if state.is_final() {
                        format!(
                            "the job's state is {}, and it has no archive; retry it (POST to its /retry)",
                            state.as_str()
                        )
                    } else {
                        "the job has no archive yet; watch its state".to_owned()
                    },
                )
            },
            JobsError::ArchiveLost => Self::new(
                StatusCode::CONFLICT,
                "archive-lost",
                "The archive is lost",
                format!("{detail}; retry the job (POST to its /retry) to rebuild it from the capture"),
            ),
            JobsError::ArchiveGone => Self::new(
                StatusCode::GONE,
                "archive-gone",
                "The archive is gone",
                "the job has expired and its files were removed; submit it again",
            ),
            JobsError::Archive(ArchiveError::Cancelled) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "not-ready",
                "The service is not ready",
                "it is shutting down; try again once it is back",
            ),
            JobsError::DataDirectoryGone | JobsError::DataDirectoryUnreadable(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "The service is not ready", &detail)
                    .caused_by(&detail)
            }
            ref full if full.is_disk_full() => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "disk-full",
                "The disk is full",
                "make room on the disk of DATA_DIR, then try again",
            )
            .caused_by(detail),
            ref damaged if damaged.is_damaged_capture() => Self::new(
                StatusCode::CONFLICT,
                "capture-damaged",
                "The capture is damaged",
                format!("{detail}; retry the job (POST to its /retry)"),
            ),
            JobsError::Store(_) | JobsError::Archive(_) | JobsError::CaptureGone | JobsError::Io(_) => {
                Self::internal().caused_by(detail)
            }
        }
    }
}
