//! All that knows Zoom's HTTP: how to get a token, how fast to ask, what to do with each answer, what pages look like.
//!
//! Owns the account's credentials and its budget. Knows nothing of jobs, windows or storage: it is given a call and
//! gives back an answer that its caller could read, or a [`Failure`] that no further repetition would mend.

pub mod auth;
pub mod budget;
pub mod call;
pub mod client;
pub mod lane;
mod line;
mod load;
pub mod outage;
pub mod outcome;
mod readers;
pub mod retry;
mod transport;
pub mod wire;

pub use budget::{Budget, Waiting};
pub use call::{Call, Include, ItemChoice};
pub use client::{Account, ZoomSettings};
pub use lane::{Lane, Traffic};
pub use outcome::{Failure, FailureKind};
pub use transport::{NoClient, is_http, travels_in_the_open, wrong_environment};
