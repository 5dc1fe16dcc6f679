//! The sockets: so many connections at a time, so much patience with each.
//!
//! An accept loop of its own, because limits on headers, on slow clients and on connections are not axum's affair.
//! When all connections are taken, the one that has been waiting longest for a request to arrive makes room: neither
//! idle clients nor ones that send a byte a minute keep others out.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
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

/// The longest until a request's head has arrived; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that takes nothing of an answer for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// The most bytes of a request's head. The HTTP library's own limit of 100 headers applies as well.
const MAX_HEAD: usize = 32 << 10;
/// After trouble with accepting (no descriptors left, most likely) the next try is this much later.
const ACCEPT_TROUBLE: Duration = Duration::from_millis(100);
/// While all connections are busy, how often to look whether one has become idle.
const MAKE_ROOM_AGAIN: Duration = Duration::from_millis(50);

/// Serves until `stop`, then lets answers under way end for as long as `drain` allows.
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
    connections.close();
    tokio::select! {
        () = connections.wait() => {}
        () = clock.sleep(drain) => {
            tracing::warn!(connections = connections.len(), "still open after {}s, cutting them", drain.as_secs());
            cut.cancel();
            connections.wait().await;
        }
    }
}

/// Waits for room, closing one waiting connection after the other until there is some. `None` when stopping.
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
            // All were busy; one may wait by now.
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
    // Dropped after the connection and its answers, so that nothing is left of it.
    let _over = Over(connection.clone());
    let service = service_fn(move |request| answer(request, peer, router.clone(), connection.clone()));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    tokio::pin!(serving);
    // How a connection ends concerns nobody: the client broke it off, or was too slow.
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
    connection.turn_to(Activity::Answering);
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(Peer(peer));
    let response = router.oneshot(request).await?;
    let answering = Answering(connection);
    // The guard goes with the body: the connection waits for a request again once the answer is out.
    Ok(response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _ = &answering;
            frame
        }))
    }))
}

/// Connections that wait for a request, by how long they have.
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
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.last += 1;
        let number = idle.last;
        idle.waiting.insert(number, close);
        number
    }

    fn leave(&self, number: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&number);
    }

    fn close_oldest(&self) {
        let oldest = self.0.lock().unwrap_or_else(PoisonError::into_inner).waiting.pop_first();
        if let Some((_, token)) = oldest {
            token.cancel();
        }
    }
}

/// An open connection and what it does.
#[derive(Debug)]
struct Connection {
    idle: Arc<Idle>,
    close: CancellationToken,
    activity: Mutex<Activity>,
}

#[derive(Debug, Clone, Copy)]
enum Activity {
    /// For a request, with this number among those that do.
    Waiting(u64),
    Answering,
    Over,
}

impl Connection {
    fn new(idle: Arc<Idle>, close: CancellationToken) -> Arc<Self> {
        let connection = Arc::new(Self { idle, close, activity: Mutex::new(Activity::Answering) });
        connection.wait();
        connection
    }

    /// Waits for the next request, unless it is over.
    fn wait(&self) {
        let mut activity = self.activity.lock().unwrap_or_else(PoisonError::into_inner);
        if let Activity::Answering = *activity {
            *activity = Activity::Waiting(self.idle.enter(self.close.clone()));
        }
    }

    fn turn_to(&self, next: Activity) {
        let mut activity = self.activity.lock().unwrap_or_else(PoisonError::into_inner);
        if let Activity::Waiting(number) = std::mem::replace(&mut *activity, next) {
            self.idle.leave(number);
        }
    }
}

/// The end of a connection, however it comes.
struct Over(Arc<Connection>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.turn_to(Activity::Over);
    }
}

/// Held while an answer is on its way.
struct Answering(Arc<Connection>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.wait();
    }
}
