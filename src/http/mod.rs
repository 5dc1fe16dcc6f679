//! The HTTP API: routes, errors, authentication, the OpenAPI document.
//!
//! Handlers extract, call [`Jobs`], convert. The router and the OpenAPI document come from the same list of routes.

mod archive;
mod audit;
mod auth;
mod body;
mod conditions;
mod events;
mod file;
mod jobs;
pub mod openapi;
mod parameters;
mod problem;
mod recent;
mod server;
mod system;
mod view;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower::util::option_layer;
use tower_http::ServiceBuilderExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;
use tower_http::request_id::{MakeRequestId, RequestId};
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;
use tower_http::trace::TraceLayer;
use tracing::Instrument;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

pub use audit::{Audit, FILE_NAME as AUDIT_FILE};
pub use auth::{ApiKeys, Rights};
pub use server::serve;

use crate::clock::SharedClock;
use crate::extract::Account;
use crate::jobs::Jobs;
use auth::FailedAttempts;
use problem::{Cause, Problem};

/// The maximum size of a request body.
const MAX_BODY: usize = 1 << 20;
/// A request body that makes no progress for this long is abandoned.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// What a browser may do with an answer: nothing.
const POLICY: &str = "default-src 'none'; frame-ancestors 'none'";
/// ... and with the documentation: run its own scripts and call this service. Swagger UI sets styles on elements.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

pub const DEFAULT_CONNECTIONS: usize = 4_096;
pub const DEFAULT_EVENT_STREAMS: usize = 2_048;
pub const DEFAULT_DOWNLOADS: usize = 256;

/// How the service is exposed.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    pub api_keys: ApiKeys,
    pub max_connections: usize,
    pub max_event_streams: usize,
    pub max_downloads: usize,
    /// Origins whose pages may call from a browser (CORS); none by default.
    pub cors_origins: Vec<HeaderValue>,
    /// Serves the metrics on this address, without a key, instead of with the API.
    pub metrics_listen: Option<SocketAddr>,
    /// How long answers in flight may take to finish when the service stops.
    pub shutdown_grace: Duration,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            api_keys: ApiKeys::default(),
            max_connections: DEFAULT_CONNECTIONS,
            max_event_streams: DEFAULT_EVENT_STREAMS,
            max_downloads: DEFAULT_DOWNLOADS,
            cors_origins: Vec::new(),
            metrics_listen: None,
            shutdown_grace: Duration::from_secs(8),
        }
    }
}

/// What handlers share.
#[derive(Debug, Clone)]
pub struct AppState {
    jobs: Arc<Jobs>,
    account: Arc<Account>,
    api_keys: Arc<ApiKeys>,
    failed_attempts: Arc<FailedAttempts>,
    audit: Arc<Audit>,
    event_streams: Arc<Semaphore>,
    long_polls: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    checks: Arc<Semaphore>,
    clock: SharedClock,
    stopping: CancellationToken,
}

impl AppState {
    /// `stopping` ends long polls and event streams when the service stops.
    pub fn new(
        jobs: Arc<Jobs>,
        account: Arc<Account>,
        audit: Audit,
        settings: &HttpSettings,
        connections: usize,
        clock: SharedClock,
        stopping: CancellationToken,
    ) -> Self {
        let places = |most: usize| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Self {
            jobs,
            account,
            api_keys: Arc::new(settings.api_keys.clone()),
            failed_attempts: Arc::default(),
            audit: Arc::new(audit),
            // Leaves some connections for requests that do not wait.
            event_streams: places(settings.max_event_streams.min((connections / 2).max(1))),
            long_polls: places(connections / 4),
            downloads: places(settings.max_downloads),
            checks: places(1),
            clock,
            stopping,
        }
    }
}

/// Routes that need a key, when there are keys.
fn protected() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(jobs::create, jobs::list))
        .routes(routes!(jobs::get, jobs::delete))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::retry))
        .routes(routes!(jobs::failures))
        .routes(routes!(events::events))
        .routes(routes!(archive::download))
        .routes(routes!(system::check_account))
}

/// Served with the API or on an address of their own.
fn metrics_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(system::metrics))
}

/// Routes open to everybody.
fn open_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(system::healthz)).routes(routes!(system::readyz))
}

fn document() -> utoipa::openapi::OpenApi {
    openapi::complete(protected().merge(metrics_routes()).merge(open_routes()).to_openapi())
}

/// The whole service as one router.
pub fn router(state: AppState, settings: &HttpSettings) -> Router {
    let (mut protected, _) = protected().split_for_parts();
    if settings.metrics_listen.is_none() {
        protected = protected.merge(metrics_routes().split_for_parts().0);
    }
    let (open, _) = open_routes().split_for_parts();
    let mut document = openapi::with_days_until(document(), state.clock.today());
    if settings.metrics_listen.is_some() {
        document.paths.paths.remove("/metrics");
    }
    let docs = SwaggerUi::new("/docs")
        .url("/openapi.json", document)
        .config(Config::new(["/openapi.json"]).try_it_out_enabled(true).display_request_duration(true));
    let docs = Router::from(docs)
        .layer(map_response(|answer: Response| async {
            let is_nothing = [StatusCode::NOT_FOUND, StatusCode::BAD_REQUEST].contains(&answer.status());
            if is_nothing { nothing_here().into_response() } else { answer }
        }))
        .layer(set("content-security-policy", DOCS_POLICY));
    let protected = protected
        .layer(from_fn_with_state(state.clone(), auth::require_key))
        .layer(from_fn_with_state(state.clone(), audit::record))
        .layer(from_fn_with_state(state.clone(), complete_changes))
        .layer(set("cache-control", "private, no-cache"));
    let router = Router::new()
        .merge(protected)
        .merge(open)
        .merge(docs)
        .route("/", get(|| async { Redirect::to("/docs/") }));
    finished(router, state, cors(settings))
}

/// Runs a request that changes something to its end, even if the caller hangs up: otherwise its handler would be dropped
/// wherever it stood. A check changes nothing.
async fn complete_changes(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if request.method().is_safe() || request.uri().path() == "/v1/check" {
        return next.run(request).await;
    }
    match state.jobs.run_to_completion(next.run(request).in_current_span()).await {
        Ok(response) => response,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Problem::internal().into_response(),
        },
    }
}

/// The metrics alone, for an address that only the collector reaches.
pub fn metrics_router(state: AppState) -> Router {
    finished(metrics_routes().split_for_parts().0, state, None)
}

/// A `Content-Length` in a 304 would be taken for the document's (RFC 9110, 8.6). None is sent for a body of unknown length.
fn without_length_of_nothing(answer: Response) -> Response {
    let of_unknown_length = Body::from_stream(futures_util::stream::empty::<Result<Bytes, Infallible>>());
    if answer.status() == StatusCode::NOT_MODIFIED { answer.map(|_| of_unknown_length) } else { answer }
}

/// Adds what every answer has, including the 404 of unknown paths.
fn finished(router: Router<AppState>, state: AppState, cors: Option<CorsLayer>) -> Router {
    let layers = ServiceBuilder::new()
        .map_request(without_strange_id)
        .set_request_id(REQUEST_ID, NewRequestId(state.clock.clone()))
        .layer(TraceLayer::new_for_http().make_span_with(span).on_response(log_response).on_failure(()))
        .propagate_request_id(REQUEST_ID)
        .layer(CatchPanicLayer::custom(|_| -> Response {
            Problem::internal().caused_by("a handler panicked").into_response()
        }))
        .map_response(without_length_of_nothing)
        .layer(set("x-content-type-options", "nosniff"))
        .layer(set("x-frame-options", "DENY"))
        .layer(set("referrer-policy", "no-referrer"))
        .layer(set("content-security-policy", POLICY));
    router
        .fallback(|| async { nothing_here() })
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "This path does not support this method",
                "see the Allow header, or /docs",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(RequestBodyTimeoutLayer::new(BODY_TIMEOUT))
        .layer(option_layer(cors))
        .layer(layers)
        .with_state(state)
}

fn nothing_here() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "not-found",
        "There is nothing here",
        "see /docs for the paths that exist",
    )
}

/// `None` without origins: the layer would answer every OPTIONS request, which should get a 405 then.
fn cors(settings: &HttpSettings) -> Option<CorsLayer> {
    if settings.cors_origins.is_empty() {
        return None;
    }
    let layer = CorsLayer::new()
        .allow_origin(settings.cors_origins.clone())
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            header::IF_RANGE,
            header::RANGE,
            HeaderName::from_static("idempotency-key"),
        ])
        .expose_headers([
            header::ETAG,
            header::LOCATION,
            header::CONTENT_DISPOSITION,
            header::CONTENT_RANGE,
            header::RETRY_AFTER,
            HeaderName::from_static("repr-digest"),
            REQUEST_ID,
        ]);
    Some(layer)
}

fn set(name: &'static str, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::if_not_present(HeaderName::from_static(name), HeaderValue::from_static(value))
}

/// Removes a caller's request id that does not look like one: it would go into the log, the audit trail and the answer.
fn without_strange_id(mut request: Request) -> Request {
    let looks_like_one =
        |id: &HeaderValue| (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    if request.headers().get(REQUEST_ID).is_some_and(|id| !looks_like_one(id)) {
        request.headers_mut().remove(REQUEST_ID);
    }
    request
}

/// Generates ids for requests that come without one.
#[derive(Debug, Clone)]
struct NewRequestId(SharedClock);

impl MakeRequestId for NewRequestId {
    fn make_request_id<B>(&mut self, _: &axum::http::Request<B>) -> Option<RequestId> {
        HeaderValue::from_str(&self.0.uuid().to_string()).ok().map(RequestId::new)
    }
}

fn span(request: &Request) -> tracing::Span {
    let id = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // At error level, so that every log line about a request can be found by its id.
    tracing::error_span!("request", method = %request.method(), path = request.uri().path(), request.id = id)
}

fn log_response<B>(response: &axum::http::Response<B>, latency: Duration, _: &tracing::Span) {
    let status = response.status();
    metrics::counter!("zcr_http_responses_total", "status" => status.as_str().to_owned()).increment(1);
    let latency_ms = latency.as_millis() as u64;
    if status.is_server_error() {
        let cause = response.extensions().get().map(|Cause(cause)| cause);
        tracing::error!(status = status.as_u16(), cause, latency_ms, "answered");
    } else {
        tracing::debug!(status = status.as_u16(), latency_ms, "answered");
    }
}
