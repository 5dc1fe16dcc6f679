//! A run: from a date range to a capture that holds everything Zoom has for it.
//!
//! Owns the order of the work: plan windows, list sessions, follow each range's chain of pages, record what failed.
//! Knows nothing of jobs, of the HTTP API, or of what becomes of the capture afterwards.

pub mod check;
mod digest;
mod earlier;
mod feed;
mod listing;
mod paging;
mod progress;
mod ranges;
mod reach;
mod reconcile;
mod refused;
pub mod request;
mod run;
mod shared;
mod split;
mod splitter;
pub mod windows;

pub use crate::capture::{Counts, Meta, is_damaged_copy};
pub use crate::zoom::{Account, Include, Waiting};
pub use earlier::{Captured, captured, figures_in};
pub use progress::{Progress, Snapshot};
pub use request::{EditsBy, ExtractRequest, SessionFilter};
pub use run::{Damage, Extent, RunSummary, run};
pub use shared::{ExtractError, ExtractSettings, RunContext};
