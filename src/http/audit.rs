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
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use serde::Serialize;

use super::auth::{Caller, peer};
use super::parameters::PathId;
use super::recent::Recent;
use super::{AppState, REQUEST_ID};
use crate::sync::lock;

/// The trail's file in the data directory.
pub const FILE_NAME: &str = "audit.jsonl";
/// A repeated read of the same job within this time is not recorded again: clients poll.
const SAME_LOOK: Duration = Duration::from_secs(60);
/// The most characters recorded of `X-Forwarded-For`: the last ones, as each proxy appends what it knows.
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

/// How often an action is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recorded {
    Always,
    OnceAMinute,
}

fn action_of(method: &Method, path: &str) -> Option<(&'static str, Recorded)> {
    use Recorded::{Always, OnceAMinute};
    Some(match (method.as_str(), path) {
        ("POST", "/v1/jobs") => ("create", Always),
        ("GET" | "HEAD", "/v1/jobs") => ("list", OnceAMinute),
        ("GET" | "HEAD", "/v1/jobs/{id}") | ("HEAD", "/v1/jobs/{id}/archive") => ("read", OnceAMinute),
        ("GET" | "HEAD", "/v1/jobs/{id}/events") => ("follow", OnceAMinute),
        ("GET" | "HEAD", "/v1/jobs/{id}/failures") => ("read-failures", OnceAMinute),
        ("GET", "/v1/jobs/{id}/archive") => ("download", Always),
        ("DELETE", "/v1/jobs/{id}") => ("delete", Always),
        ("POST", "/v1/jobs/{id}/cancel") => ("cancel", Always),
        ("POST", "/v1/jobs/{id}/retry") => ("retry", Always),
        ("POST", "/v1/check") => ("check", Always),
        _ => return None,
    })
}

/// Records each request of an admitted caller, including refused ones.
pub async fn record(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let action = matched.as_deref().and_then(|path| action_of(request.method(), path));
    let Some((action, recorded)) = action else {
        return next.run(request).await;
    };
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
    if recorded == Recorded::OnceAMinute {
        let look = format!("{action} {job:?} {name:?} {from:?} {}", response.status());
        if state.audit.seen_lately(look, state.clock.elapsed()) {
            return response;
        }
    }
    state.audit.write(&Line {
        at: format!("{:.3}", state.clock.now()),
        action,
        job,
        key: name,
        from,
        forwarded_for: forwarded_for(&headers),
        status: response.status().as_u16(),
        request_id: headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).map(str::to_owned),
    });
    response
}

fn forwarded_for(headers: &HeaderMap) -> Option<String> {
    let lines = headers.get_all("x-forwarded-for").into_iter();
    let lines: Vec<_> = lines.map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    let all = lines.join(", ");
    let last = all.char_indices().rev().nth(MOST_TOLD - 1).map_or(0, |(start, _)| start);
    (!lines.is_empty()).then(|| all[last..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_that_needs_a_key_has_an_action() {
        let paths = crate::http::document().paths.paths;
        let protected = paths.iter().filter(|(path, _)| path.starts_with("/v1"));
        let operations = protected.flat_map(|(path, item)| {
            let methods =
                [(Method::GET, &item.get), (Method::POST, &item.post), (Method::DELETE, &item.delete)];
            methods.map(|(method, operation)| (method, path, operation.is_some()))
        });
        for (method, path, exists) in operations {
            assert_eq!(action_of(&method, path).is_some(), exists, "{method} {path}");
        }
    }
}
