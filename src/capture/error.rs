//! What can go wrong with a capture.

use super::location::SCHEMA_VERSION;
use crate::files;
use crate::sqlite;

#[derive(Debug, Clone, thiserror::Error)]
pub enum CaptureError {
    #[error("the disk is full")]
    DiskFull,
    #[error(
        "the capture was written by another version (its schema is {found}, this version uses {SCHEMA_VERSION})"
    )]
    OtherVersion { found: i64 },
    #[error("the capture could not be used: {0}")]
    Database(String),
    #[error("the capture's files could not be used: {0}")]
    Io(String),
    #[error("the capture is damaged: {0}")]
    Damaged(String),
    #[error("the capture's writer has stopped")]
    WriterGone,
}

impl CaptureError {
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull)
    }

    pub fn is_of_another_version(&self) -> bool {
        matches!(self, Self::OtherVersion { .. })
    }

    pub fn is_damaged(&self) -> bool {
        matches!(self, Self::Damaged(_))
    }
}

impl From<std::io::Error> for CaptureError {
    fn from(error: std::io::Error) -> Self {
        if files::is_full(&error) { Self::DiskFull } else { Self::Io(error.to_string()) }
    }
}

impl From<sqlx::Error> for CaptureError {
    fn from(error: sqlx::Error) -> Self {
        if sqlite::is_disk_full(&error) {
            Self::DiskFull
        } else if sqlite::is_damage(&error) || matches!(error, sqlx::Error::ColumnDecode { .. }) {
            Self::Damaged(error.to_string())
        } else {
            Self::Database(error.to_string())
        }
    }
}
