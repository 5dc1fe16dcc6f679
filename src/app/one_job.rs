//! One job without a service: the same engine, its capture beside its output.
//!
//! The capture stays with the output, so that the same command resumes where an interrupted one stopped, and another command
//! cannot silently overwrite what an earlier one fetched.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::published::{Mark, put_in_place};
use super::{AppError, LOCK, lock};
pub use crate::archive::FailureLine;
use crate::archive::{
    ArchiveError, ArchiveFile, AssembleInput, FOLDERS, Form, alongside, assemble, failures_page,
};
use crate::capture::{CaptureError, Location, Meta, is_damaged_copy};
use crate::clock::SharedClock;
use crate::extract::{
    self, Account, Captured, Damage, ExtractError, ExtractRequest, ExtractSettings, Progress, RunContext,
    RunSummary, Snapshot,
};
use crate::files::{
    free_name, has_entry, is_full, is_there, numbered, remove_all_but, remove_but_last, suffixed,
};
use crate::zoom::ZoomSettings;

/// Where the files go.
#[derive(Debug, Clone)]
pub enum Output {
    Directory(PathBuf),
    Zip(PathBuf),
}

impl Output {
    /// Where the capture is.
    pub fn working_directory(&self) -> PathBuf {
        match self {
            Self::Directory(directory) => directory.join(".capture"),
            Self::Zip(file) => suffixed(file, ".capture"),
        }
    }

    /// Whether there is a capture to resume, or a mark that output was being published.
    pub fn is_begun(&self) -> bool {
        let directory = self.working_directory();
        Location::in_directory(&directory).is_begun() || Mark::is_in(&directory)
    }

    /// The command-line option that names it.
    pub fn setting(&self) -> &'static str {
        match self {
            Self::Directory(_) => "--output-dir",
            Self::Zip(_) => "--zip",
        }
    }

    /// The first of its files or folders that exists.
    fn found(&self) -> Option<PathBuf> {
        match self {
            Self::Directory(directory) => {
                FOLDERS.map(|folder| directory.join(folder)).into_iter().find(|path| is_there(path))
            }
            Self::Zip(file) => is_there(file).then(|| file.clone()),
        }
    }

    /// Where to move what is at `place` if it is to be kept when something else goes there.
    pub(super) fn kept_as(&self, place: &Path) -> PathBuf {
        free_name(|suffix| match (self, place.file_name()) {
            (Self::Directory(_), Some(folder)) => self.before(suffix).join(folder),
            _ => self.before(suffix),
        })
    }

    fn before(&self, suffix: &str) -> PathBuf {
        match self {
            Self::Directory(directory) => directory.join(format!("before{suffix}")),
            Self::Zip(file) => suffixed(file, &format!(".before{suffix}")),
        }
    }

    /// Everything that has been kept so far.
    fn kept(&self) -> Vec<PathBuf> {
        numbered(|suffix| self.before(suffix)).take_while(|path| is_there(path)).collect()
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Zip(path) => path,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OneJobError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(
        "{} holds an extraction of {there}; choose another place ({setting}), or remove it and its output to start over",
        capture.display()
    )]
    OtherRequest { capture: PathBuf, there: String, setting: &'static str },
    #[error("{} already exists; choose another place or move it away", path.display())]
    Exists { path: PathBuf },
    #[error(transparent)]
    Extract(#[from] ExtractError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("{} cannot be used: {error}", path.display())]
    File { path: PathBuf, error: std::io::Error },
}

impl OneJobError {
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Archive(error) => error.is_disk_full(),
            Self::Extract(ExtractError::Capture(error)) | Self::Capture(error) => error.is_disk_full(),
            Self::File { error, .. } => is_full(error),
            _ => false,
        }
    }

    /// Whether the run was cancelled.
    pub fn is_cancellation(&self) -> bool {
        matches!(self, Self::Extract(ExtractError::Cancelled) | Self::Archive(ArchiveError::Cancelled))
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Report {
    pub summary: RunSummary,
    /// Size and hash of a zip; `None` for a directory.
    pub archive: Option<ArchiveFile>,
    pub last: Snapshot,
    /// Requests sent by this run.
    pub asked: u64,
    /// The first failures, for a person to read.
    pub failures: Vec<FailureLine>,
    /// Earlier output and damaged captures that may hold what the new files do not: some of it may have left Zoom's reach by
    /// now.
    pub kept: Vec<PathBuf>,
    /// The same, kept by earlier runs.
    pub kept_earlier: Vec<PathBuf>,
    /// Why the capture could not be removed; everything in it is in the zip.
    pub left: Option<OneJobError>,
}

/// A prepared extraction.
#[derive(Debug)]
pub struct OneJob {
    account: Arc<Account>,
    clock: SharedClock,
    request: ExtractRequest,
    output: Output,
    /// Whether an earlier run of the same request is being continued.
    pub continues: bool,
    _lock: File,
}

/// The extension of a capture's directory while it is being removed: everything in it is in the zip.
const REMOVED: &str = "capture-removed";
/// How often figures are handed to the reporter.
const REPORT_EVERY: Duration = Duration::from_millis(200);
/// The most failures that a report lists; the rest are in `failures.json`.
const MOST_FAILURES: usize = 1_000;

impl OneJob {
    pub async fn prepare(
        zoom: ZoomSettings,
        request: ExtractRequest,
        output: Output,
        clock: SharedClock,
    ) -> Result<Self, OneJobError> {
        let account = Account::new(zoom, clock.clone()).map_err(AppError::Client)?;
        let directory = output.working_directory();
        if matches!(output, Output::Zip(_)) {
            // Left over if an earlier run was killed.
            remove(&directory.with_extension(REMOVED))?;
        }
        // Before anything is created, and again once the lock keeps other processes out.
        refuse_foreign_files(&output)?;
        let lock = lock(&directory, output.setting())?;
        refuse_foreign_files(&output)?;
        let continues = output.is_begun() && can_resume(&request, &account.fingerprint(), &output).await?;
        Ok(Self { account, clock, request, output, continues, _lock: lock })
    }

    /// Runs to the end; `report` gets the figures five times a second.
    pub async fn run(
        self,
        cancel: CancellationToken,
        mut report: impl FnMut(&Snapshot),
    ) -> Result<Report, OneJobError> {
        let (kept_before, directory) = (self.output.kept(), self.output.working_directory());
        let lane = Arc::new(self.account.lane());
        let progress = Arc::new(Progress::default());
        let figures = || progress.snapshot(&lane.traffic, lane.stalled(), self.clock.elapsed());
        let context = RunContext {
            request: self.request.clone(),
            facts: vec![(Meta::Version, env!("CARGO_PKG_VERSION").to_owned())],
            directory: directory.clone(),
            retry_failed: self.continues,
            lane: lane.clone(),
            progress: progress.clone(),
            settings: ExtractSettings::default(),
            clock: self.clock.clone(),
            cancel: cancel.clone(),
            all_listed: CancellationToken::new(),
        };
        let form = match &self.output {
            Output::Directory(_) => Form::Directory,
            Output::Zip(_) => Form::Zip,
        };
        let input = AssembleInput { directory: directory.clone(), form, cancel };
        let (summary, begun) = {
            let all_listed = context.all_listed_if_paced();
            let mut running = Box::pin(alongside(extract::run(context), input, all_listed, &self.clock));
            loop {
                tokio::select! {
                    ended = &mut running => break ended?,
                    () = self.clock.sleep(REPORT_EVERY) => report(&figures()),
                }
            }
        };
        let last = figures();
        report(&last);
        let assembled = assemble(begun).await?;
        // Again: something may have been put there meanwhile.
        refuse_foreign_files(&self.output)?;
        let archive = assembled.archive.clone();
        put_in_place(assembled, self.request.clone(), summary.extent, self.output.clone()).await?;
        let (failures, _) = failures_page(&directory, None, MOST_FAILURES).await?.unwrap_or_default();
        let (kept_earlier, mut kept): (Vec<_>, Vec<_>) =
            self.output.kept().into_iter().partition(|path| kept_before.contains(path));
        let mut left = None;
        if matches!(self.output, Output::Zip(_)) && summary.counts.failures == 0 {
            // The zip holds everything; a directory keeps its capture, which shows what the directory holds.
            match remove_capture(&directory) {
                Ok(damaged) => kept.extend(damaged),
                Err(error) => left = Some(error),
            }
        } else if matches!(summary.damage, Damage::All) {
            // The damaged index stays there, beside the new one.
            kept.push(directory.clone());
        }
        let asked = lane.traffic.requests.load(Relaxed);
        Ok(Report { summary, archive, last, asked, failures, kept, kept_earlier, left })
    }
}

/// Adds the path to an I/O error.
fn at<T>(path: &Path, done: std::io::Result<T>) -> Result<T, OneJobError> {
    done.map_err(|error| OneJobError::File { path: path.to_owned(), error })
}

/// Removes a capture whose whole content is in the zip. It is renamed first, so that another process finds all of it or
/// nothing. What was set aside as damaged may not be in the zip: it stays, in a directory whose path is returned.
fn remove_capture(directory: &Path) -> Result<Option<PathBuf>, OneJobError> {
    if at(directory, has_entry(directory, is_damaged_copy))? {
        let damaged = free_name(|suffix| directory.with_extension(format!("damaged{suffix}")));
        at(directory, std::fs::rename(directory, &damaged))?;
        // Best effort: the rest only takes space.
        let _ = remove_all_but(&damaged, is_damaged_copy);
        return Ok(Some(damaged));
    }
    let removed = directory.with_extension(REMOVED);
    at(directory, std::fs::rename(directory, &removed))?;
    remove(&removed).map(|()| None)
}

/// Removes a capture's directory. The lock file goes last: until then it marks the directory as ours.
fn remove(directory: &Path) -> Result<(), OneJobError> {
    if is_there(&directory.join(LOCK)) {
        return at(directory, remove_but_last(directory, LOCK));
    }
    // Removes the directory only if it is empty; otherwise, without a lock file, it is somebody else's.
    let _ = std::fs::remove_dir(directory);
    Ok(())
}

/// Existing output is ours only if our mark is there, and a directory with our working directory's name only if it has our lock
/// file. A finished zip no longer has a mark, so it always counts as somebody else's.
fn refuse_foreign_files(output: &Output) -> Result<(), OneJobError> {
    let directory = output.working_directory();
    let is_anything = directory.is_dir() && at(&directory, has_entry(&directory, |_| true))?;
    if is_anything && !is_there(&directory.join(LOCK)) {
        return Err(OneJobError::Exists { path: directory });
    }
    let is_ours = Mark::is_in(&directory);
    match output.found() {
        Some(path) if !is_ours => Err(OneJobError::Exists { path }),
        _ => Ok(()),
    }
}

/// Whether there is something of this request to resume. A capture that received nothing is removed; one of another request is
/// an error.
async fn can_resume(request: &ExtractRequest, account: &str, output: &Output) -> Result<bool, OneJobError> {
    let (directory, setting) = (&output.working_directory(), output.setting());
    let location = Location::in_directory(directory);
    let mark = at(&Mark::path(directory), Mark::read(directory))?;
    let captured = match extract::captured(directory).await {
        // Nothing was received, or its plan was never committed.
        Ok(captured) if mark.is_none() && captured.as_ref().is_none_or(|captured| !captured.answered) => {
            at(directory, location.remove())?;
            return Ok(false);
        }
        Ok(captured) => captured,
        // The run sets a damaged capture aside. After any other error, what is in the capture is unknown.
        Err(error) => match location.check(&CancellationToken::new()).await {
            Err(damage) if damage.is_damaged() => None,
            _ => return Err(error.into()),
        },
    };
    let other =
        |there: String| Err(OneJobError::OtherRequest { capture: directory.to_owned(), there, setting });
    if captured.as_ref().and_then(|captured| captured.account.as_ref()).is_some_and(|mark| mark != account) {
        return other("another Zoom account".to_owned());
    }
    let captured = captured.map(|Captured { request, .. }| request);
    let marked = mark.map(|Mark { request, .. }| request);
    // Without a mark, nothing shows which request a damaged capture belongs to: the run sets it aside.
    let Some(stored) = captured.or(marked) else { return Ok(true) };
    if stored == *request {
        return Ok(true);
    }
    let same_dates = stored.range() == request.range();
    let but = if same_dates { " with other options" } else { "" };
    other(format!("{} to {}{but}", stored.from, stored.to))
}
