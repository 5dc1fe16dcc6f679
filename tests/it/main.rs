//! The whole service against the simulator, over sockets: one binary, a file per promise.

mod harness;

mod api;
mod command_line;
mod documents;
mod failures;
mod import_rule;
mod resume;
mod wholeness;
