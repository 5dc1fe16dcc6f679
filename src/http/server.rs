//! The sockets: limits the number of connections, and the time that each may take.
//!
//! Has its own accept loop, because axum does not limit headers, slow clients or connections. When all connections are in use,
//! the one that has waited longest for a request to arrive is closed: neither idle clients nor ones that send a byte a minute
//! keep others out.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::auth::Peer;
use crate::clock::SharedClock;
use crate::sync::lock;

/// The time limit for a request's head to arrive; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that reads nothing of an answer for this long is taken to be gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// The maximum size of a request's head in bytes. The HTTP library's own limit of 100 headers applies as well.
const MAX_HEAD: usize = 32 << 10;
/// The delay before accepting again after an error (most likely no file descriptors are left).
const ACCEPT_TROUBLE: Duration = Duration::from_millis(100);
/// While all connections are busy, how often to check whether one has become idle.
const MAKE_ROOM_AGAIN: Duration = Duration::from_millis(50);

/// Serves until `stop`, then gives answers in flight up to `drain` to finish.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    most: usize,
    stop: CancellationToken,
    drain: Duration,
    clock: SharedClock,
) {
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(most));
    let idle = Arc::new(Idle::default());
    let cut = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                clock.sleep(ACCEPT_TROUBLE).await;
                continue;
            }
        };
        let permit = if let Ok(permit) = room.clone().try_acquire_owned() {
            permit
        } else {
            let Some(permit) = make_room(&room, &idle, &stop, &clock).await else { break };
            permit
        };
        let (router, idle, stop, cut) = (router.clone(), idle.clone(), stop.clone(), cut.clone());
        connections.spawn(async move {
            cut.run_until_cancelled(connection(socket, peer, router, idle, stop)).await;
            drop(permit);
        });
    }
    // From here on, new connections are refused.
    drop(listener);
    connections.close();
    tokio::select! {
        () = connections.wait() => {}
        () = clock.sleep(drain) => {
            tracing::warn!(connections = connections.len(), "connections still open after {}s, closing them", drain.as_secs());
            cut.cancel();
            connections.wait().await;
        }
    }
}

/// Waits for a free slot, closing one idle connection after the other until there is one. `None` when stopping.
async fn make_room(
    room: &Arc<Semaphore>,
    idle: &Idle,
    stop: &CancellationToken,
    clock: &SharedClock,
) -> Option<OwnedSemaphorePermit> {
    loop {
        idle.close_oldest();
        tokio::select! {
            permit = room.clone().acquire_owned() => {
                return Some(permit.expect("the semaphore is never closed"));
            }
            // All were busy; one may be idle by now.
            () = clock.sleep(MAKE_ROOM_AGAIN) => {}
            () = stop.cancelled() => return None,
        }
    }
}

async fn connection(
    socket: TcpStream,
    peer: SocketAddr,
    router: Router,
    idle: Arc<Idle>,
    stop: CancellationToken,
) {
    let _ = socket.set_nodelay(true);
    let mut stream = TimeoutStream::new(socket);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let room_needed = CancellationToken::new();
    let connection = Connection::new(idle, room_needed.clone());
    let service = service_fn(move |request| answer(request, peer, router.clone(), connection.clone()));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    tokio::pin!(serving);
    // Errors are ignored: the client closed the connection, or was too slow.
    tokio::select! {
        _ = &mut serving => {}
        () = room_needed.cancelled() => {}
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    router: Router,
    connection: Arc<Connection>,
) -> Result<Response<Body>, Infallible> {
    connection.leave();
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(Peer(peer));
    let response = router.oneshot(request).await?;
    let answering = Answering(connection);
    // The guard is dropped with the body: once the answer is sent, the connection waits for a request again.
    Ok(response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _ = &answering;
            frame
        }))
    }))
}

/// Connections that wait for a request, longest waiting first.
#[derive(Debug, Default)]
struct Idle(Mutex<ByAge>);

#[derive(Debug, Default)]
struct ByAge {
    /// The number of the one that began to wait last.
    last: u64,
    waiting: BTreeMap<u64, CancellationToken>,
}

impl Idle {
    fn enter(&self, close: CancellationToken) -> u64 {
        let mut idle = lock(&self.0);
        idle.last += 1;
        let number = idle.last;
        idle.waiting.insert(number, close);
        number
    }

    fn leave(&self, number: u64) {
        lock(&self.0).waiting.remove(&number);
    }

    fn close_oldest(&self) {
        let oldest = lock(&self.0).waiting.pop_first();
        if let Some((_, token)) = oldest {
            token.cancel();
        }
    }
}

/// An open connection, owned by its service and the answers it is sending.
#[derive(Debug)]
struct Connection {
    idle: Arc<Idle>,
    close: CancellationToken,
    /// Its number in `idle`, while it waits for a request.
    waiting: Mutex<Option<u64>>,
}

impl Connection {
    fn new(idle: Arc<Idle>, close: CancellationToken) -> Arc<Self> {
        let connection = Arc::new(Self { idle, close, waiting: Mutex::default() });
        connection.wait();
        connection
    }

    fn wait(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.get_or_insert_with(|| self.idle.enter(self.close.clone()));
    }

    fn leave(&self) {
        let waiting = lock(&self.waiting).take();
        if let Some(number) = waiting {
            self.idle.leave(number);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Held while an answer is being sent; then the connection waits again.
struct Answering(Arc<Connection>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.wait();
    }
}
