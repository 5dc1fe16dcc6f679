//! Turns signals into cancellation: the first requests a graceful shutdown, another ends the process at once.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;

/// A signal this soon after the first is a duplicate: `timeout` and terminals send it to a process and to its group.
const ECHO: Duration = Duration::from_millis(500);

/// Returns a token that is cancelled at the first SIGTERM or SIGINT. Committed data is on disk and the rest is fetched again,
/// so a later signal may end the process at any point.
pub fn on_signal(clock: SharedClock) -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut first = None;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let now = clock.elapsed();
            match first {
                None => {
                    first = Some(now);
                    tracing::info!("stopping; a second signal ends the process at once");
                    cancelled.cancel();
                }
                Some(first) if now - first <= ECHO => {}
                Some(_) => std::process::exit(130),
            }
        }
    });
    Ok(token)
}
