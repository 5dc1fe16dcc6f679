//! Jobs: requests with a life. Stored before they are promised, run in the background, kept until they expire.
//!
//! `model` says what a job is and which states follow which, `store` keeps it (SQLite), `mending` opens its file and mends one
//! that is damaged, `recovery` rebuilds what that has lost, `registry` holds what is live, `runner` does the work, `trouble` tells
//! what stopped it, `service` is what the outside calls, `retention` ends old ones; `directory` knows the files of a job.

mod directory;
mod error;
mod failure;
mod mending;
pub mod model;
mod recovery;
mod registry;
mod retention;
mod runner;
mod service;
mod store;
#[cfg(test)]
mod testing;

pub use error::JobsError;
pub use model::{Job, JobFailure, JobId, JobState};
pub use registry::Follower;
pub use service::{JobSettings, Jobs};
pub use store::{ListFilter, Listed};
