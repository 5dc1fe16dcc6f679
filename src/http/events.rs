//! A job's life as server-sent events: `progress` at once and then at most twice a second, `state` on change.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::unfold;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::AppState;
use super::parameters::PathId;
use super::problem::Problem;
use super::view::JobView;
use crate::jobs::{Follower, Job, JobId, JobState, JobsError};

/// How often a comment is sent when nothing happens, so that proxies keep the connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One event of the stream.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes what `event` makes")]
pub(super) struct SentEvent {
    /// `progress` or `state`.
    #[schema(example = "progress")]
    event: String,
    /// The whole job, as JSON.
    data: String,
}

/// Follow a job
///
/// Server-sent events: one `progress` at once and then at most two a second, a `state` on every change of state; each
/// carries the whole job. The stream ends after a final state.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/events", tag = "jobs", operation_id = "follow_job",
    params(("id" = uuid::Uuid, Path, description = "The job's id")),
    responses(
        (status = 200, description = "Events", body = SentEvent, content_type = "text/event-stream"),
        (status = 404, description = "There is no such job", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many streams at once; see Retry-After", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn events(
    State(state): State<AppState>,
    PathId(id): PathId,
) -> Result<impl IntoResponse, Problem> {
    let follower = state.jobs.follow(id);
    let job = state.jobs.get(id).await?;
    let place = state.event_streams.clone().try_acquire_owned();
    let place = place
        .map_err(|_| Problem::too_many("event streams", "MAX_EVENT_STREAMS, or half of the connections"))?;
    let mut feed =
        Feed { app: state, id, follower, shown: job.clone(), queue: VecDeque::new(), _place: place };
    feed.queue.push_back(event("progress", &job));
    // A client that connects or reconnects after the end is told that the job has ended.
    if job.state.is_final() {
        feed.queue.push_back(event("state", &job));
    }
    let stream =
        unfold(feed, |mut feed| async move { Some((Ok::<_, Infallible>(feed.next().await?), feed)) });
    // Else nginx collects a few kilobytes before it passes anything on.
    Ok(([("x-accel-buffering", "no")], Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))))
}

struct Feed {
    app: AppState,
    id: JobId,
    follower: Follower,
    shown: Job,
    queue: VecDeque<Event>,
    _place: OwnedSemaphorePermit,
}

fn event(name: &str, job: &Job) -> Event {
    Event::default().event(name).json_data(JobView::from(job)).expect("a view is plain data")
}

impl Feed {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            if self.shown.state.is_final() {
                return None;
            }
            tokio::select! {
                () = self.follower.changed() => {}
                () = self.app.stopping.cancelled() => return None,
            }
            let job = match self.app.jobs.get(self.id).await {
                Ok(job) => job,
                // It was deleted.
                Err(JobsError::NotFound) => return None,
                Err(error) => {
                    tracing::error!(%error, job.id = %self.id, "an event stream ends early");
                    return None;
                }
            };
            let changed_state = job.state != self.shown.state;
            if job.progress != self.shown.progress && (!changed_state || job.state == JobState::Running) {
                self.queue.push_back(event("progress", &job));
            }
            if changed_state {
                self.queue.push_back(event("state", &job));
            }
            self.shown = job;
        }
    }
}
