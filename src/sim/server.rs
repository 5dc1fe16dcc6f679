//! The sockets: an accept loop of its own, because answers must be cut short, delayed, or not given at all.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, Response, header};
use futures_util::stream;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::{Answer, Api};
use super::faults::FaultAnswer;
use super::noise::Noise;

/// How long "never" lasts.
const NEVER: Duration = Duration::from_secs(600);
/// Plenty: only token requests have a body, and a small one.
const MAX_BODY: usize = 64 << 10;

pub(super) async fn accept(listener: TcpListener, api: Arc<Api>, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        // Most likely out of file descriptors: a later accept may succeed.
        let Ok((socket, _)) = accepted else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (api, stop) = (api.clone(), stop.clone());
        connections.spawn(async move { stop.run_until_cancelled(serve(socket, api)).await });
    }
    connections.close();
    connections.wait().await;
}

async fn serve(socket: TcpStream, api: Arc<Api>) {
    let _ = socket.set_nodelay(true);
    let service = service_fn(move |request| respond(api.clone(), request));
    // A connection that was reset on purpose ends in an error; nobody needs to know.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}

async fn respond(api: Arc<Api>, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(Body::new(body), MAX_BODY).await.map_err(io::Error::other)?;
    let Answer { response, fault } = api.answer(&head.method, &head.uri, &head.headers, &body);
    sleep(latency(&api)).await;
    match fault {
        Some(FaultAnswer::Reset) => return Err(io::ErrorKind::ConnectionReset.into()),
        Some(FaultAnswer::CutBody(after)) => return cut(response, after).await,
        Some(FaultAnswer::Delay(by)) => sleep(by).await,
        Some(FaultAnswer::Hang) => sleep(NEVER).await,
        _ => {}
    }
    Ok(response)
}

#[expect(clippy::disallowed_methods, reason = "the simulator imports nothing of ours, so it has no Clock")]
async fn sleep(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

/// Uniformly distributed around the configured latency. Derived from the number of report requests so far: a token request gets
/// the latency of the report request before it, and concurrent answers may share one.
fn latency(api: &Api) -> Duration {
    let (middle, jitter) = (api.settings.latency, api.settings.latency_jitter);
    if jitter.is_zero() {
        return middle;
    }
    let number = api.with(|changing| changing.stats.requests);
    let spread =
        Noise::new(api.settings.seed).with(300).with(number).below(2 * jitter.as_micros() as u64 + 1);
    (middle + Duration::from_micros(spread)).saturating_sub(jitter)
}

/// Declares the full length and sends only `after` bytes.
async fn cut(response: Response<Body>, after: usize) -> Result<Response<Body>, io::Error> {
    let (mut head, body) = response.into_parts();
    let whole = axum::body::to_bytes(body, usize::MAX).await.map_err(io::Error::other)?;
    let length = whole.len().max(1);
    head.headers.insert(header::CONTENT_LENGTH, length.into());
    let part = whole.slice(..after.min(length - 1).min(whole.len()));
    let pieces = [Ok::<Bytes, io::Error>(part), Err(io::ErrorKind::ConnectionReset.into())];
    Ok(Response::from_parts(head, Body::from_stream(stream::iter(pieces))))
}
