//! Why the work on a job stopped, and how that is reported: a stable code, what happened, and what to do about it.

use std::io;

use super::model::JobFailure;
use crate::archive::ArchiveError;
use crate::extract::{self, ExtractError};
use crate::files::is_full;

/// Why there is no archive.
#[derive(Debug)]
pub enum RunEnd {
    /// The job was cancelled, or the service is stopping.
    Interrupted,
    Failed(JobFailure),
}

/// What to do about a damaged capture.
const REFETCH: &str = "retry fetches the damaged parts again; a damaged index is kept beside the new one";

fn failed(code: &str, error: &impl std::fmt::Display, help: Option<&str>) -> RunEnd {
    let (code, detail, help) = (code.to_owned(), error.to_string(), help.map(str::to_owned));
    RunEnd::Failed(JobFailure { code, detail, help })
}

/// A job's directory could not be made.
pub fn no_directory(error: &io::Error) -> RunEnd {
    let (code, help) = if is_full(error) {
        ("disk-full", "make room, then retry the job")
    } else {
        (
            "data-directory",
            "check that DATA_DIR exists and is writable and that its disk is sound, then retry the job",
        )
    };
    failed(code, error, Some(help))
}

impl From<ExtractError> for RunEnd {
    fn from(error: ExtractError) -> Self {
        let (code, help) = match &error {
            ExtractError::Cancelled => return Self::Interrupted,
            ExtractError::Account(failure) => {
                (failure.kind.code(), Some(extract::check::help_for(failure.kind)))
            }
            ExtractError::Capture(inner) if inner.is_disk_full() => {
                ("disk-full", Some("make room, then retry the job; it resumes where it stopped"))
            }
            ExtractError::Capture(inner) if inner.is_damaged() => ("capture-damaged", Some(REFETCH)),
            ExtractError::Capture(inner) if inner.is_of_another_version() => {
                ("capture", Some("finish the job with the release that began it, or submit it again"))
            }
            ExtractError::Capture(_) => (
                "capture",
                Some(
                    "check DATA_DIR, its disk, and how many files the service may open; retry resumes where it stopped",
                ),
            ),
            ExtractError::OtherAccount => (
                "other-account",
                Some(
                    "start the service with the account that the job was started with and retry the job, or submit it again",
                ),
            ),
            ExtractError::Panicked => ("internal", None),
        };
        failed(code, &error, help)
    }
}

impl From<ArchiveError> for RunEnd {
    fn from(error: ArchiveError) -> Self {
        let (code, help) = match &error {
            ArchiveError::Cancelled => return Self::Interrupted,
            full if full.is_disk_full() => {
                ("disk-full", "make room, then retry the job; nothing is fetched again")
            }
            damaged if damaged.is_damaged_capture() => ("capture-damaged", REFETCH),
            _ => ("archive", "check DATA_DIR and its disk, then retry the job; nothing is fetched again"),
        };
        failed(code, &error, Some(help))
    }
}
