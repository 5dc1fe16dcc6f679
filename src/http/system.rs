//! The service itself: alive, ready, metrics, and whether the account is ready.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::problem::Problem;
use crate::extract::check;

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    #[schema(example = "ok")]
    status: &'static str,
    version: &'static str,
}

const OK: Health = Health { status: "ok", version: env!("CARGO_PKG_VERSION") };

/// Alive
///
/// Answers as long as the process serves requests.
#[utoipa::path(get, path = "/healthz", tag = "service", operation_id = "health", security(()),
    responses((status = 200, description = "Alive", body = Health)))]
pub(super) async fn healthz() -> Json<Health> {
    Json(OK)
}

/// Ready
///
/// 200 when the table of jobs can be read and its disk has room. Depends neither on Zoom nor on the length of the queue.
#[utoipa::path(get, path = "/readyz", tag = "service", operation_id = "ready", security(()),
    responses((status = 200, description = "Ready", body = Health),
        (status = 503, description = "Not ready", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn readyz(State(state): State<AppState>) -> Result<Json<Health>, Problem> {
    let refused = |why: &str| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "The service is not ready", why)
    };
    if state.stopping.is_cancelled() {
        return Err(refused("it is shutting down"));
    }
    state.jobs.check_files()?;
    if !state.jobs.has_room()? {
        return Err(refused("its disk is full").caused_by("the disk of DATA_DIR is full"));
    }
    let queued = state.jobs.queued().await;
    queued.map_err(|error| refused("its table of jobs cannot be read").caused_by(error))?;
    Ok(Json(OK))
}

/// Metrics
///
/// Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "service", operation_id = "metrics",
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(state): State<AppState>) -> Response {
    // The other figures are needed most while the table of jobs cannot be read.
    let queued = state.jobs.queued().await;
    let queued = queued.inspect_err(|error| tracing::error!(%error, "queued jobs could not be counted"));
    metrics::gauge!("zcr_jobs_running").set(state.jobs.running() as f64);
    metrics::gauge!("zcr_jobs_queued").set(queued.map_or(f64::NAN, |queued| queued as f64));
    metrics::gauge!("zcr_waiting").set(f64::from(u8::from(state.account.waiting().is_some())));
    let text = crate::telemetry::metrics().render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CheckAnswer {
    /// True when every step is fine.
    ok: bool,
    #[schema(value_type = Vec<StepView>)]
    steps: Vec<check::Step>,
}

/// One step of the check.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StepView {
    /// `settings`, `token`, `scopes`, `list`, `messages`; the check stops at the first that fails.
    #[schema(example = "token")]
    name: String,
    ok: bool,
    elapsed_ms: u64,
    detail: String,
    /// What to do about it; null when the step is fine.
    help: Option<String>,
}

/// Check the Zoom account
///
/// Tests the settings, an access token, its scopes, the session list and one session's messages, in this order. Answers 200
/// even if a step fails; see `ok`. Only one check runs at a time.
#[utoipa::path(post, path = "/v1/check", tag = "service", operation_id = "check_account",
    responses(
        (status = 200, description = "The steps", body = CheckAnswer),
        (status = 429, description = "Another check is running; see Retry-After", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn check_account(State(state): State<AppState>) -> Result<Json<CheckAnswer>, Problem> {
    // A check's requests take turns with those of jobs: many checks at once would leave little for the jobs.
    let _one_at_a_time = state
        .checks
        .try_acquire()
        .map_err(|_| Problem::too_many_at_once("another check of the account is running"))?;
    let mut steps = Vec::new();
    check::check(&state.account, &state.clock, |step| steps.push(step)).await;
    Ok(Json(CheckAnswer { ok: steps.iter().all(|step| step.ok), steps }))
}
