//! HTTP towards users: routes, errors, authentication, the document that describes them.
//!
//! Handlers extract, call [`Jobs`], convert. The router and the OpenAPI document come from the same list of routes.

mod archive;
pub mod auth;
pub mod body;
mod events;
mod jobs;
pub mod openapi;
pub mod problem;
mod system;
mod view;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower_http::ServiceBuilderExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestId, RequestId};
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::trace::TraceLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

pub use auth::ApiKeys;

use crate::clock::SharedClock;
use crate::extract::Account;
use crate::jobs::Jobs;
use problem::Problem;

/// The largest body of a request.
const MAX_BODY: usize = 1 << 20;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What handlers share.
#[derive(Debug, Clone)]
pub struct AppState {
    pub jobs: Arc<Jobs>,
    pub account: Arc<Account>,
    pub api_keys: Arc<ApiKeys>,
    pub clock: SharedClock,
    /// Ends long polls and event streams when the service stops.
    pub stopping: CancellationToken,
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
        .routes(routes!(system::metrics))
}

/// Routes open to everybody.
fn open() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(system::healthz)).routes(routes!(system::readyz))
}

fn document() -> utoipa::openapi::OpenApi {
    openapi::complete(protected().merge(open()).to_openapi())
}

/// The whole service as one router.
pub fn router(state: AppState) -> Router {
    let (protected, _) = protected().split_for_parts();
    let (open, _) = open().split_for_parts();
    let document = document();
    let docs = SwaggerUi::new("/docs").url("/openapi.json", document).config(
        Config::new(["/openapi.json"])
            .try_it_out_enabled(true)
            .persist_authorization(true)
            .display_request_duration(true),
    );
    let protected = protected.layer(from_fn_with_state(state.clone(), auth::require_key));
    let layers = ServiceBuilder::new()
        .set_request_id(REQUEST_ID, NewRequestId(state.clock.clone()))
        .layer(TraceLayer::new_for_http().make_span_with(span).on_response(log_response).on_failure(()))
        .propagate_request_id(REQUEST_ID)
        .layer(CatchPanicLayer::custom(|_| -> Response { Problem::internal().into_response() }))
        .layer(set("x-content-type-options", "nosniff"))
        .layer(set("x-frame-options", "DENY"))
        .layer(set("referrer-policy", "no-referrer"));
    Router::new()
        .merge(protected)
        .merge(open)
        .merge(docs)
        .route("/", get(|| async { Redirect::to("/docs/") }))
        .fallback(|| async {
            Problem::new(
                StatusCode::NOT_FOUND,
                "not-found",
                "There is nothing here",
                "see /docs for what there is",
            )
        })
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "This path does not take this method",
                "see the Allow header, or /docs",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(layers)
        .with_state(state)
}

fn set(name: &'static str, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::if_not_present(HeaderName::from_static(name), HeaderValue::from_static(value))
}

/// Ids for requests that bring none of their own.
#[derive(Debug, Clone)]
struct NewRequestId(SharedClock);

impl MakeRequestId for NewRequestId {
    fn make_request_id<B>(&mut self, _: &axum::http::Request<B>) -> Option<RequestId> {
        HeaderValue::from_str(&self.0.uuid().to_string()).ok().map(RequestId::new)
    }
}

fn span(request: &Request) -> tracing::Span {
    let id = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok()).unwrap_or_default();
    tracing::debug_span!("request", method = %request.method(), path = request.uri().path(), request.id = id)
}

fn log_response<B>(response: &axum::http::Response<B>, latency: Duration, _: &tracing::Span) {
    let status = response.status();
    metrics::counter!("zcr_http_responses_total", "status" => status.as_str().to_owned()).increment(1);
    let is_problem =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/problem+json");
    let latency_ms = latency.as_millis() as u64;
    if status.is_server_error() {
        tracing::error!(status = status.as_u16(), latency_ms, "answered");
    } else {
        tracing::debug!(status = status.as_u16(), latency_ms, is_problem, "answered");
    }
}
