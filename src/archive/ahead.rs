//! What can be done before the last message is there: files are named, and those of sessions that are complete are hashed,
//! so that little more than copying is left for the end.
//!
//! Not before it has to be: what is remembered of each file would wait on disk meanwhile. Nothing is taken for complete
//! that could still change: no more units must be found.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::assemble::{AssembleInput, Assembly, on_own_thread};
use crate::clock::SharedClock;

/// After looking for complete sessions it rests at least so long, and as long as that took.
const LEAST_REST: Duration = Duration::from_secs(2);

/// As much of an archive as could be made before everything was there; perhaps nothing.
#[derive(Debug, Default)]
pub struct Begun(pub(super) Option<Assembly>);

/// Runs `fetching` to its end, and beside it begins with the archive as soon as `almost_done` tells that no more sessions or
/// units will be found and the end is near; without it not before the end, which is as fast when fetching keeps the
/// processors busy. What goes wrong with that is left for the end, where it goes wrong again and is told.
pub async fn alongside<T>(
    fetching: impl Future<Output = T>,
    input: &AssembleInput,
    almost_done: Option<CancellationToken>,
    clock: &SharedClock,
) -> (T, Begun) {
    let Some(almost_done) = almost_done else { return (fetching.await, Begun::default()) };
    let fetched = CancellationToken::new();
    let beginning = begin(input.clone(), almost_done, fetched.clone(), clock.clone());
    let fetching = async {
        let result = fetching.await;
        fetched.cancel();
        result
    };
    tokio::join!(fetching, beginning)
}

async fn begin(
    input: AssembleInput,
    almost_done: CancellationToken,
    fetched: CancellationToken,
    clock: SharedClock,
) -> Begun {
    if fetched.run_until_cancelled(almost_done.cancelled()).await.is_none() {
        return Begun::default();
    }
    let begun = on_own_thread(move || async move {
        let mut assembly = Assembly::begin(input).await?;
        loop {
            let started = clock.elapsed();
            assembly.hash_sessions(true, 1, &fetched).await?;
            let rest = clock.elapsed().saturating_sub(started).max(LEAST_REST);
            if fetched.run_until_cancelled(clock.sleep(rest)).await.is_none() {
                return Ok(assembly);
            }
        }
    });
    match begun.await {
        Ok(assembly) => Begun(Some(assembly)),
        Err(error) => {
            tracing::debug!(%error, "the archive could not be begun early");
            Begun::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::archive::assemble_zip;
    use crate::capture::{Change, ListedSession, Location, PageOf, Segment, Writer};
    use jiff::civil::date;

    async fn page(writer: &Writer, range: i64, items: &[&str]) {
        let page = PageOf { chain: range, seq: 0, next: None, unknown: Vec::new() };
        let segments = [Segment::of_items(items, 6), None, None];
        writer
            .commit(Change::MessagesPage { page, query: String::new(), segments, repeats: 0 })
            .await
            .unwrap();
    }

    /// Three sessions in one window, of which only the second is there.
    async fn capture(directory: &Path) -> Writer {
        let writer = Location::in_directory(directory).open_writer().await.unwrap();
        let windows = vec![(date(2026, 5, 1), date(2026, 5, 30))];
        let request = r#"{"from":"2026-05-01","to":"2026-05-30"}"#.to_owned();
        let meta = vec![("request", request), ("started_at", "2026-05-30T18:00:00Z".to_owned())];
        writer.commit(Change::Plan { windows, meta }).await.unwrap();
        let sessions = ["a", "b", "c"]
            .map(|id| ListedSession { zoom_id: id.to_owned(), info: format!("{{\"id\":\"{id}\"}}") });
        let page_of_list = PageOf { chain: 1, seq: 0, next: None, unknown: Vec::new() };
        writer.commit(Change::ListPage { page: page_of_list, sessions: sessions.into() }).await.unwrap();
        page(&writer, 2, &["{\"text\":\"second\"}"]).await;
        writer
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_complete_sessions_are_hashed_early_and_the_archive_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let writer = capture(directory.path()).await;
        let input =
            AssembleInput { directory: directory.path().to_owned(), cancel: CancellationToken::new() };
        let mut early = Assembly::begin(input.clone()).await.unwrap();
        early.hash_sessions(true, 1, &CancellationToken::new()).await.unwrap();
        assert_eq!([1, 2, 3].map(|session| early.scratch.has(session)), [false, true, false]);
        page(&writer, 1, &["{\"text\":\"first\"}", "{\"text\":\"and more\"}"]).await;
        page(&writer, 3, &[]).await;
        let place = |name| directory.path().join(name);
        let begun = Begun(Some(early));
        let made = assemble_zip(input.clone(), begun, place("early.zip")).await.unwrap();
        let again = assemble_zip(input, Begun::default(), place("again.zip")).await.unwrap();
        assert_eq!(made, again);
        writer.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_begun_before_the_end_is_near() {
        let directory = tempfile::tempdir().unwrap();
        let writer = capture(directory.path()).await;
        let input =
            AssembleInput { directory: directory.path().to_owned(), cancel: CancellationToken::new() };
        let clock = crate::clock::SystemClock::shared();
        for almost_done in [None, Some(CancellationToken::new())] {
            let (ended, begun) = alongside(async { 7 }, &input, almost_done, &clock).await;
            assert!(ended == 7 && begun.0.is_none());
        }
        let almost_done = CancellationToken::new();
        almost_done.cancel();
        let fetching = async {
            while !directory.path().join("assemble.tmp").exists() {
                tokio::task::yield_now().await;
            }
        };
        assert!(alongside(fetching, &input, Some(almost_done), &clock).await.1.0.is_some());
        writer.close().await;
    }
}
