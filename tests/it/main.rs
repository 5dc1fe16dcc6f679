//! The whole service against the simulator, over sockets: one binary, a file per promise.

#![expect(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod caller;
mod harness;
mod process;

mod again;
mod answers;
mod api;
mod command_line;
mod crashes;
mod damage;
mod disks;
mod documents;
mod extract;
mod failures;
mod import_rule;
mod kept;
mod keys;
mod legacy;
mod limits;
mod operation;
mod outages;
mod reach;
mod resume;
mod shutdown;
mod traces;
mod transport;
mod wholeness;
