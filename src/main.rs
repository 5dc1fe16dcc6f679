//! Parses arguments, builds the runtime, returns an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    zoom_chat_reports::cli::main()
}
