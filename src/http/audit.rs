//! The audit trail: who did what with which job, when, from where. One JSON line per action, append-only.
//!
//! A layer around the routes that need a key, so that no handler can forget it. Holds names of keys, never keys, and no chat
//! content.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use axum::RequestExt;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::Instrument;

use super::auth::{Caller, peer};
use super::parameters::PathId;
use super::problem::Problem;
use super::recent::Recent;
use super::{AppState, REQUEST_ID};
use crate::sync::lock;

/// The trail's file in the data directory.
pub const FILE_NAME: &str = "audit.jsonl";
/// A repeated read of the same job within this time is not recorded again: clients poll.
const SAME_LOOK: Duration = Duration::from_secs(60);
/// The most characters recorded of a header that a caller sends.
const MOST_TOLD: usize = 256;

/// An open audit trail.
#[derive(Debug)]
pub struct Audit {
    file: Mutex<File>,
    looks: Recent<String>,
}

/// One line of the trail.
#[derive(Debug, Serialize)]
struct Line<'a> {
    at: String,
    action: &'static str,
    job: Option<&'a str>,
    /// The name of the key; null for a key without one, or when there are no keys.
    key: Option<&'a str>,
    /// The other end of the connection: the proxy, if there is one.
    from: Option<String>,
    /// What the proxy says about the caller. Not verified: anybody can send it.
    forwarded_for: Option<String>,
    status: u16,
    request_id: Option<String>,
}

impl Audit {
    /// Opens the trail of a data directory, readable by its owner only.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options().create(true).append(true).mode(0o600).open(data_dir.join(FILE_NAME))?;
        Ok(Self { file: Mutex::new(file), looks: Recent::new(SAME_LOOK) })
    }

    /// Whether the same read was recorded within the last minute.
    fn seen_lately(&self, look: String, now: Duration) -> bool {
        self.looks.count(look, now).is_some_and(|(_, looks)| looks > 1)
    }

    /// Appends the line in one write, before the caller gets its answer, so that everything answered is in the trail.
    fn write(&self, line: &Line<'_>) {
        let mut text = serde_json::to_string(line).expect("a line is plain data");
        text.push('\n');
        let mut file = lock(&self.file);
        let whole = file.metadata().map(|data| data.len());
        let written = file.write_all(text.as_bytes());
        if let Err(error) = written {
            // Half a line would spoil the next one as well, so it is cut off. If that fails, nothing more can be done.
            let _ = whole.and_then(|length| file.set_len(length));
            // Failing the request would keep people from deleting jobs on a full disk; the log has the line instead.
            metrics::counter!("zcr_audit_failures_total").increment(1);
            tracing::error!(%error, line = text.trim_end(), "the audit trail could not be written");
        }
    }
}

/// The kind of action that a request performs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Export,
    Write,
}

fn action_of(method: &Method, path: &str) -> Option<(&'static str, Kind)> {
    Some(match (method.as_str(), path) {
        ("POST", "/v1/jobs") => ("create", Kind::Write),
        ("GET" | "HEAD", "/v1/jobs") => ("list", Kind::Read),
        ("GET" | "HEAD", "/v1/jobs/{id}") | ("HEAD", "/v1/jobs/{id}/archive") => ("read", Kind::Read),
        ("GET" | "HEAD", "/v1/jobs/{id}/events") => ("follow", Kind::Read),
        ("GET" | "HEAD", "/v1/jobs/{id}/failures") => ("read-failures", Kind::Read),
        ("GET", "/v1/jobs/{id}/archive") => ("download", Kind::Export),
        ("DELETE", "/v1/jobs/{id}") => ("delete", Kind::Write),
        ("POST", "/v1/jobs/{id}/cancel") => ("cancel", Kind::Write),
        ("POST", "/v1/jobs/{id}/retry") => ("retry", Kind::Write),
        ("POST", "/v1/check") => ("check", Kind::Export),
        _ => return None,
    })
}

/// Records each request of an admitted caller, including refused ones. A request that changes something runs to completion and
/// is recorded even if the caller hangs up; otherwise its handler would be dropped wherever it stood.
pub async fn record(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let action = matched.as_deref().and_then(|path| action_of(request.method(), path));
    let Some((action, kind)) = action else {
        return next.run(request).await;
    };
    if kind != Kind::Write {
        return run_recorded(state, action, kind, request, next).await;
    }
    let jobs = state.jobs.clone();
    let work = run_recorded(state, action, kind, request, next).in_current_span();
    match jobs.run_to_completion(work).await {
        Ok(response) => response,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Problem::internal().into_response(),
        },
    }
}

async fn run_recorded(
    state: AppState,
    action: &'static str,
    kind: Kind,
    mut request: Request,
    next: Next,
) -> Response {
    // Read as the handler reads it.
    let id = request.extract_parts::<PathId>().await.ok().map(|PathId(id)| id.to_string());
    let from = peer(&request).map(|peer| peer.ip().to_string());
    let headers = request.headers().clone();
    let response = next.run(request).await;
    // A caller that was not admitted did nothing. Wrong keys are counted and logged where keys are checked; a line for each
    // such request would let anybody fill the disk.
    let Some(caller) = response.extensions().get::<Caller>().cloned() else { return response };
    let created = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let job = id.as_deref().or_else(|| created.and_then(|location| location.rsplit('/').next()));
    let name = caller.name.as_deref();
    if kind == Kind::Read {
        let look = format!("{action} {job:?} {name:?} {from:?} {}", response.status());
        if state.audit.seen_lately(look, state.clock.elapsed()) {
            return response;
        }
    }
    let told = |value: &HeaderValue| Some(value.to_str().ok()?.chars().take(MOST_TOLD).collect::<String>());
    let text = |name| headers.get(name).and_then(told);
    state.audit.write(&Line {
        at: format!("{:.3}", state.clock.now()),
        action,
        job,
        key: name,
        from,
        forwarded_for: text(axum::http::HeaderName::from_static("x-forwarded-for")),
        status: response.status().as_u16(),
        request_id: text(REQUEST_ID),
    });
    response
}
