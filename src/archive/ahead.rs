//! Writes and hashes the files of complete sessions while others are still being fetched, so that little is left for the end.
//!
//! A session counts as complete only when no more of its units can be found.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::Form;
use super::assemble::{AssembleInput, Assembly, on_own_thread};
use crate::clock::SharedClock;

/// The shortest rest between two looks for complete sessions; a look that takes longer is followed by a rest as long: each look
/// scans everything that has ended since the last complete session.
const LEAST_REST: Duration = Duration::from_secs(2);

/// As much of an archive as could be made before everything was fetched; perhaps nothing.
#[derive(Debug)]
pub struct Begun {
    pub(super) input: AssembleInput,
    pub(super) assembly: Option<Assembly>,
}

impl Begun {
    /// Everything is still to be made.
    pub fn nothing(input: AssembleInput) -> Self {
        Self { input, assembly: None }
    }

    /// Removes what was made, on a thread that may block.
    async fn discard(self) {
        if let Some(assembly) = self.assembly {
            let discard = |_| {
                assembly.discard();
                Ok(())
            };
            // Best effort: the next archive overwrites what is left.
            let _ = on_own_thread(discard).await;
        }
    }
}

/// Runs `fetching` to its end, and meanwhile starts on the archive as soon as `all_listed` signals that no more sessions or
/// units will be found. If fetching fails, what was begun is removed before this returns. Without `all_listed`, it waits for
/// the end, which is as fast when fetching keeps the processors busy.
/// Early errors are left for the end, where they recur and are reported. Only a zip is started early: the files of a directory
/// are several times as large as the capture, and might take the disk space that the rest of the capture needs.
pub async fn alongside<T, E>(
    fetching: impl Future<Output = Result<T, E>>,
    input: AssembleInput,
    all_listed: Option<CancellationToken>,
    clock: &SharedClock,
) -> Result<(T, Begun), E> {
    let Some(all_listed) = all_listed.filter(|_| input.form == Form::Zip) else {
        return Ok((fetching.await?, Begun::nothing(input)));
    };
    let fetched = CancellationToken::new();
    let told = fetched.clone().drop_guard();
    let beginning = begin(input, all_listed, fetched.clone(), clock.clone());
    let fetching = async {
        // Even if it panics: the early start must have ended before another run begins in the same place.
        let result = AssertUnwindSafe(fetching).catch_unwind().await;
        drop(told);
        result
    };
    let (fetched, begun) = tokio::join!(fetching, beginning);
    match fetched.unwrap_or_else(|panic| resume_unwind(panic)) {
        Ok(fetched) => Ok((fetched, begun)),
        Err(error) => {
            begun.discard().await;
            Err(error)
        }
    }
}

async fn begin(
    input: AssembleInput,
    all_listed: CancellationToken,
    fetched: CancellationToken,
    clock: SharedClock,
) -> Begun {
    if fetched.run_until_cancelled(all_listed.cancelled()).await.is_none() {
        return Begun::nothing(input);
    }
    let assembly_input = input.clone();
    let begun = on_own_thread(move |runtime| {
        let mut assembly = Assembly::begin(assembly_input, runtime.clone())?;
        loop {
            let started = clock.elapsed();
            if let Err(error) = assembly.add_complete(&fetched) {
                assembly.discard();
                return Err(error);
            }
            let rest = clock.elapsed().saturating_sub(started).max(LEAST_REST);
            if runtime.block_on(fetched.run_until_cancelled(clock.sleep(rest))).is_none() {
                return Ok(assembly);
            }
        }
    });
    let assembly =
        begun.await.inspect_err(|error| tracing::debug!(%error, "the archive could not be begun early")).ok();
    Begun { input, assembly }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::archive::assemble;
    use crate::capture::testing::{failed, list, planned, position};
    use crate::capture::{Change, MessagesPage, Meta, RangeId, Segment, Then, Writer};
    use crate::days::DateRange;
    use jiff::civil::date;
    use proptest::prelude::*;
    use tempfile::TempDir;

    const SESSIONS: i64 = 6;

    /// A capture of `SESSIONS` sessions, each in two windows: ranges 1 to 6 and 7 to 12.
    async fn capture() -> (TempDir, Writer) {
        let windows = [(4, 30), (5, 30)]
            .map(|(month, last)| DateRange::new(date(2026, month, 1), date(2026, month, last)));
        let (directory, _, writer) = planned(&windows).await;
        let request = r#"{"from":"2026-04-01","to":"2026-05-30"}"#.to_owned();
        let meta = vec![(Meta::Request, request), (Meta::StartedAt, "2026-05-30T18:00:00Z".to_owned())];
        writer.commit(Change::SetMeta(meta)).await.unwrap();
        for number in [1, 2] {
            writer.commit(list(number, &["s8", "s7", "s6", "s5", "s4", "s3"])).await.unwrap();
        }
        (directory, writer)
    }

    fn input(directory: &Path) -> AssembleInput {
        let cancel = CancellationToken::new();
        AssembleInput { directory: directory.to_owned(), form: Form::Zip, cancel }
    }

    /// How a range ends.
    #[derive(Debug, Clone, Copy)]
    enum End {
        Items,
        Empty,
        NotFound,
        Failed,
    }

    fn end_of(range: i64, end: End) -> Change {
        let range = RangeId(range);
        let page = position(range, 0);
        let text = format!("{{\"text\":\"{}\"}}", range.0);
        let segment = if matches!(end, End::Items) { Segment::of_items(&[&text], 6) } else { None };
        match end {
            End::Items | End::Empty => {
                Change::MessagesPage(MessagesPage::new(page, Then::End, [segment, None, None]))
            }
            End::NotFound => Change::RangeNotFound { range },
            End::Failed => Change::FailRange { range, failed: failed() },
        }
    }

    /// Ranges in the order in which they end, each with how it ends and whether complete sessions are added right after.
    fn run() -> impl Strategy<Value = Vec<(i64, End, bool)>> {
        let ranges = Just((1..=2 * SESSIONS).collect::<Vec<_>>()).prop_shuffle();
        let end = prop_oneof![
            4 => Just(End::Items), 2 => Just(End::Empty), 1 => Just(End::NotFound), 1 => Just(End::Failed)
        ];
        let how = proptest::collection::vec((end, any::<bool>()), 2 * SESSIONS as usize);
        (ranges, how).prop_map(|(ranges, how)| {
            ranges.into_iter().zip(how).map(|(range, (end, looked))| (range, end, looked)).collect()
        })
    }

    async fn early_and_late_are_the_same(run: Vec<(i64, End, bool)>) -> (bool, bool) {
        let (directory, writer) = capture().await;
        let begun = input(directory.path());
        let mut early = on_own_thread(move |runtime| Assembly::begin(begun, runtime)).await.unwrap();
        for (range, end, looked) in run {
            writer.commit(end_of(range, end)).await.unwrap();
            if looked {
                let look = move |_| early.add_complete(&CancellationToken::new()).map(|()| early);
                early = on_own_thread(look).await.unwrap();
            }
        }
        let begun_early = early.missing() < SESSIONS as u64;
        let made = Begun { input: input(directory.path()), assembly: Some(early) };
        let made = assemble(made).await.unwrap();
        let again = assemble(Begun::nothing(input(directory.path()))).await.unwrap();
        writer.close().await;
        (made.archive == again.archive, begun_early)
    }

    #[test]
    fn an_archive_is_the_same_however_early_it_was_begun() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let early = std::cell::Cell::new(0);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(40));
        runner
            .run(&run(), |run| {
                let (equal, begun_early) = runtime.block_on(early_and_late_are_the_same(run));
                early.set(early.get() + u32::from(begun_early));
                prop_assert!(equal);
                Ok(())
            })
            .unwrap();
        assert!(early.get() > 20, "most of them have something that is complete early");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_begun_before_all_is_listed() {
        let (directory, writer) = capture().await;
        let input = input(directory.path());
        let clock = crate::clock::SystemClock::shared();
        for all_listed in [None, Some(CancellationToken::new())] {
            let fetching = async { Ok::<_, ()>(7) };
            let (ended, begun) = alongside(fetching, input.clone(), all_listed, &clock).await.unwrap();
            assert!(ended == 7 && begun.assembly.is_none());
        }
        let all_listed = CancellationToken::new();
        all_listed.cancel();
        let temporary = directory.path().join("archive.zip.tmp");
        let fetching = async {
            while !temporary.exists() {
                tokio::task::yield_now().await;
            }
            Ok::<_, ()>(())
        };
        let begun = alongside(fetching, input.clone(), Some(all_listed.clone()), &clock).await.unwrap().1;
        assert!(begun.assembly.is_some());
        drop(begun);
        assert!(!temporary.exists(), "nothing half-written stays");
        for panics in [false, true] {
            let failing = async {
                while !temporary.exists() {
                    tokio::task::yield_now().await;
                }
                assert!(!panics, "as it was to be tested");
                Err::<(), _>(())
            };
            let run = alongside(failing, input.clone(), Some(all_listed.clone()), &clock);
            assert!(AssertUnwindSafe(run).catch_unwind().await.is_ok_and(|ended| ended.is_err()) != panics);
            assert!(!temporary.exists(), "what was begun has ended");
        }
        writer.close().await;
    }
}
