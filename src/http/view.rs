//! A job as the API shows it: null rather than absent, links instead of paths.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::type_of;
use crate::extract::ExtractRequest;
use crate::jobs::{Job, JobState};

/// The state of a job. `queued` and `running` are transient; the others are final, but become `expired` when the retention
/// period is over.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "used only for its OpenAPI schema")]
pub enum State {
    Queued,
    Running,
    Completed,
    CompletedWithFailures,
    Failed,
    Cancelled,
    Expired,
}

/// An extraction job and its progress.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobView {
    /// UUID (version 7).
    #[schema(value_type = uuid::Uuid, example = "0199f8d0-6f5e-7c3a-9d55-3f6e2b8a1c4d")]
    pub id: String,
    #[schema(value_type = State)]
    pub state: JobState,
    /// The request, with all defaults filled in.
    #[schema(value_type = super::body::JobRequest)]
    pub request: ExtractRequest,
    /// The name of the API key that submitted the job.
    pub requester: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
    /// The job's files are removed within about a minute after this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    pub progress: ProgressView,
    /// Parts given up so far; `retry` may still fetch them. `/v1/jobs/{id}/failures` lists them.
    pub failures_total: u64,
    /// Why the job failed; null otherwise.
    pub error: Option<ErrorView>,
    /// The archive, once there is one.
    pub archive: Option<ArchiveView>,
    pub links: Links,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ProgressView {
    pub windows_total: u64,
    pub windows_listed: u64,
    pub sessions_total: u64,
    pub sessions_done: u64,
    /// A unit is one session in one window.
    pub units_total: u64,
    pub units_done: u64,
    pub units_failed: u64,
    pub messages: u64,
    pub edited_messages: u64,
    pub deleted_messages: u64,
    /// Requests sent to Zoom, including repeated ones. If the process was killed, those of the last seconds may be missing.
    pub requests: u64,
    /// Of these, retries after a bad answer; repeats after a 429, an outage or an expired page token do not count.
    pub retries: u64,
    /// Answers with status 429.
    pub rate_limited: u64,
    /// Bytes of response bodies, after decompression.
    pub bytes_received: u64,
    /// Average over about the last ten seconds.
    pub requests_per_second: Option<f64>,
    pub percent: Option<f64>,
    pub eta_seconds: Option<u64>,
    /// Some or all requests to Zoom wait until this time; once it has passed, the next attempt is under way.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub waiting_until: Option<Timestamp>,
    pub waiting_reason: Option<String>,
}

/// Why a job failed, as a problem.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorView {
    #[serde(rename = "type")]
    #[schema(example = "urn:zoom-chat-reports:problem:credentials")]
    pub kind: String,
    pub title: String,
    #[schema(example = "credentials")]
    pub code: String,
    pub detail: String,
    /// What to do about it.
    pub help: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ArchiveView {
    /// Bytes.
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
    pub href: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Links {
    #[serde(rename = "self")]
    pub own: String,
    pub events: String,
    pub failures: String,
    pub archive: String,
    pub cancel: String,
    pub retry: String,
}

impl From<&Job> for JobView {
    fn from(job: &Job) -> Self {
        let own = format!("/v1/jobs/{}", job.id);
        let progress = &job.progress;
        let counts = progress.counts;
        Self {
            id: job.id.to_string(),
            state: job.state,
            request: job.request.clone(),
            requester: job.requester.clone(),
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            expires_at: job.expires_at,
            progress: ProgressView {
                windows_total: counts.windows_total,
                windows_listed: counts.windows_listed,
                sessions_total: counts.sessions_total,
                sessions_done: counts.sessions_done,
                units_total: counts.units_total,
                units_done: counts.units_done,
                units_failed: counts.units_failed,
                messages: counts.messages,
                edited_messages: counts.edited_messages,
                deleted_messages: counts.deleted_messages,
                requests: progress.traffic.requests,
                retries: progress.traffic.retries,
                rate_limited: progress.traffic.rate_limited,
                bytes_received: progress.traffic.bytes_received,
                requests_per_second: progress.requests_per_second,
                percent: progress.percent,
                eta_seconds: progress.eta_seconds,
                waiting_until: progress.waiting.as_ref().map(|waiting| waiting.until),
                waiting_reason: progress.waiting.as_ref().map(|waiting| waiting.reason.clone()),
            },
            failures_total: counts.failures,
            error: job.error.as_ref().map(|error| ErrorView {
                kind: type_of(&error.code),
                title: "The job failed".to_owned(),
                code: error.code.clone(),
                detail: error.detail.clone(),
                help: error.help.clone(),
            }),
            archive: job.archive.as_ref().map(|archive| ArchiveView {
                size: archive.size,
                sha256: archive.sha256.clone(),
                href: format!("{own}/archive"),
            }),
            links: Links {
                events: format!("{own}/events"),
                failures: format!("{own}/failures"),
                archive: format!("{own}/archive"),
                cancel: format!("{own}/cancel"),
                retry: format!("{own}/retry"),
                own,
            },
        }
    }
}
