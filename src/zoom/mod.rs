//! Everything that knows Zoom's HTTP API: how to get a token, how fast to ask, what to do with each answer, what pages look
//! like.
//!
//! Owns the account's credentials and its budget. Of a job it knows only the [`Lane`], a queue of calls that shares the budget
//! with others; nothing of windows or storage. It is given a call and returns an answer that the caller could read, or a
//! [`Failure`] that no further retry would fix.

pub mod auth;
mod budget;
mod call;
mod client;
pub mod error;
pub mod lane;
mod load;
mod outage;
mod readers;
mod refusals;
pub mod retry;
mod transport;
mod turns;
pub mod wire;

pub use budget::{Budget, Waiting};
pub use call::{Call, Include, ItemChoice};
pub use client::{Account, ZoomSettings};
pub use error::{Failure, FailureKind};
pub use lane::{Lane, Stalled, Traffic};
pub use transport::{NoClient, is_cleartext, is_http, wrong_environment};
