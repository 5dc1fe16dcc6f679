//! Jobs: extraction requests and their life cycle. Stored before they are acknowledged, run in the background, kept until they
//! expire.
//!
//! `model` defines jobs and their state transitions, `store` persists them (SQLite), `repair` opens its file and repairs a
//! damaged one, `recovery` rebuilds lost records, `registry` holds live state, `runner` runs jobs, `failure` explains what
//! stopped them, `service` and `results` are the interface for callers, `retention` expires old jobs; `directory` manages a
//! job's files.

mod directory;
mod error;
mod failure;
mod model;
mod recovery;
mod registry;
mod repair;
mod results;
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
