//! Every chat message of a Zoom account: complete, fast and unattended.
//!
//! # Data flow
//! ```text
//! POST /v1/jobs -> job stored -> runner claims it -> plan windows -> list sessions -> units -> ranges
//!     -> pages (token, budget, send, classify, retry) -> capture (commit) -> archive -> GET /v1/jobs/{id}/archive
//! ```
//! One direction. Whatever comes from Zoom is committed to the job's capture before anything else happens to it, and everything
//! handed to the user is a pure function of the capture.
//!
//! # Import rules
//! `zoom -> clock`, `capture -> nothing`, `archive -> capture, clock`, `extract -> zoom, capture, clock`,
//! `jobs -> extract, archive, clock`, `http -> jobs`, the check of `extract` and the value types of `extract` and `archive`,
//! `app -> http, jobs, extract, archive, capture, zoom, clock`, `config -> app` and the settings types it fills, `cli -> app,
//! config, sim` and value types. `sim` imports nothing of ours. `clock`, `days`, `files`, `json`, `sqlite`, `sync` and `telemetry` are leaves, which
//! everybody may import; `shutdown` needs `clock`, `sqlite` needs `files`. A test walks `src/` and fails on an edge that is not
//! in its table.
//!
//! # What is deliberately absent
//! No unsafe code (except for one call in `main.rs`), no `abort` of tasks, no second writer of a capture, no parsing of message
//! content, no request for a report outside [`zoom::Lane`], no wall clock and no timer but [`clock::Clock`] (`sim` has its own).

#![forbid(unsafe_code)]

pub mod app;
pub mod archive;
pub mod capture;
pub mod cli;
pub mod clock;
mod config;
pub mod days;
pub mod extract;
mod files;
pub mod http;
pub mod jobs;
mod json;
mod shutdown;
pub mod sim;
mod sqlite;
mod sync;
mod telemetry;
pub mod zoom;
