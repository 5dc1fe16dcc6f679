//! The command line: one small file per subcommand, and the exit codes.

mod check;
mod demo;
mod extract;
mod health;
mod serve;
mod simulate;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, CommandFactory, Parser, Subcommand};

use crate::config::{self, ConfigError, LogArgs};
use crate::telemetry::{self, LogFormat};

/// Everything is there (even if there was nothing to extract).
const WHOLE: u8 = 0;
/// The command failed.
const FAILED: u8 = 1;
/// Wrong use: an argument or setting is wrong.
const WRONG_USE: u8 = 2;
/// Finished, but parts are missing; they are listed.
const WITH_FAILURES: u8 = 3;
/// How long the process waits for what nothing can interrupt, once everything else has ended.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Extracts every Team Chat message of a Zoom account completely, fast and unattended.
///
/// Run `zoom-chat-reports demo` to watch a complete extraction from a simulated account, without any credentials.
/// To connect your own account, put the credentials of a Server-to-Server OAuth app into `.env` (see `.env.example`)
/// and run `zoom-chat-reports check`.
#[derive(Debug, Parser)]
#[command(
    name = "zoom-chat-reports",
    version,
    max_term_width = 110,
    after_help = "Precedence of settings: flags, then the environment, then .env.\n\
                  Exit codes: 0 complete, 3 finished with failures, 1 failed, 2 invalid usage or settings."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logs: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service: submit jobs over HTTP, follow them, download archives
    Serve(Box<serve::ServeArgs>),
    /// Extract a date range into a directory or a zip, without a service
    Extract(Box<extract::ExtractArgs>),
    /// Check that the Zoom account is ready: one line per step, exit code 1 if not
    Check(Box<check::CheckArgs>),
    /// Watch a complete extraction from a simulated account; needs no credentials
    Demo(demo::DemoArgs),
    /// Run only the simulator of Zoom's API
    Simulate(simulate::SimulateArgs),
    /// Print the OpenAPI document
    Openapi,
    /// Ask a running service whether it is ready (for containers without curl)
    Health(health::HealthArgs),
}

impl Command {
    /// Level and form of the log: commands whose output is for a person log errors only, as text.
    fn log(&self) -> (&'static str, LogFormat) {
        match self {
            Self::Serve(_) | Self::Simulate(_) => ("info", LogFormat::of_a_service()),
            Self::Extract(_) | Self::Check(_) | Self::Demo(_) | Self::Openapi | Self::Health(_) => {
                ("error", LogFormat::Text)
            }
        }
    }

    /// Warns about settings that are probably not intended, and about unknown `ZOOM_…` variables: a misspelt one would be
    /// silently ignored.
    fn warn_about_settings(&self) {
        let to_a_person: fn(String) = |doubt| remark(format_args!("warning: {doubt}"));
        let (zoom, tell): (_, fn(String)) = match self {
            Self::Serve(args) => (&args.zoom, |doubt| tracing::warn!("{doubt}")),
            Self::Extract(args) => (&args.zoom, to_a_person),
            Self::Check(args) => (&args.zoom, to_a_person),
            Self::Demo(_) | Self::Simulate(_) | Self::Openapi | Self::Health(_) => return,
        };
        let (command, mut warnings) = (Cli::command(), zoom.warnings());
        let known = settings_of(&command);
        let unknown = std::env::vars_os().map(|(name, _)| name).filter(|name| !known.contains(&name[..]));
        let unknown = unknown.filter_map(|name| name.into_string().ok());
        let unknown = unknown.filter(|name| name.starts_with("ZOOM_"));
        warnings.extend(unknown.map(|name| format!("{name} is not a known setting and is ignored")));
        warnings.into_iter().for_each(tell);
    }
}

/// Runs the command line and returns its exit code.
pub fn main() -> ExitCode {
    let dotenv = config::load_dotenv();
    let parsed = Cli::try_parse();
    if let Err(error) = dotenv
        && !parsed.as_ref().is_err_and(|told| told.exit_code() == 0)
    {
        // Unless help or the version was asked for, which need no settings.
        return complain(&error.into());
    }
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let setting = wrong_setting(&error);
            // Nothing can be done about a closed standard error.
            let _ = error.print();
            if error.kind() == clap::error::ErrorKind::InvalidUtf8 {
                for name in not_utf8() {
                    remark(format_args!("\nThe environment variable {name} is not valid UTF-8."));
                }
            }
            if let Some(setting) = setting {
                let is_empty = std::env::var_os(&setting).is_some_and(|value| value.is_empty());
                let hint = if is_empty { " It is set but empty: unset it to use the default." } else { "" };
                remark(format_args!(
                    "\nThe value comes from {setting}, in the environment or in .env.{hint}"
                ));
            }
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let (level, format) = cli.command.log();
    if let Err(error) = telemetry::init(cli.logs.log_format.unwrap_or(format), level) {
        return complain(&WrongUse(error).into());
    }
    cli.command.warn_about_settings();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&anyhow::Error::from(error)),
    };
    let ended = runtime.block_on(run(cli.command));
    // What is still running may be a DNS lookup, which cannot be interrupted.
    runtime.shutdown_timeout(LAST_WAIT);
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => complain(&error),
    }
}

fn arguments_of(command: &clap::Command) -> impl Iterator<Item = &Arg> {
    command.get_subcommands().chain([command]).flat_map(clap::Command::get_arguments)
}

/// The environment variables that are settings.
fn settings_of(command: &clap::Command) -> HashSet<&OsStr> {
    arguments_of(command).filter_map(Arg::get_env).collect()
}

/// Settings in the environment whose values are not UTF-8.
fn not_utf8() -> Vec<String> {
    let command = Cli::command();
    let settings = settings_of(&command);
    let set =
        std::env::vars_os().filter(|(name, value)| settings.contains(&name[..]) && value.to_str().is_none());
    set.filter_map(|(name, _)| name.into_string().ok()).collect()
}

/// The environment variable that a wrong value comes from, unless its flag was given: errors name only the flag.
fn wrong_setting(error: &clap::Error) -> Option<String> {
    let clap::error::ContextValue::String(flag) = error.get(clap::error::ContextKind::InvalidArg)? else {
        return None;
    };
    let long = flag.strip_prefix("--")?.split([' ', '=']).next()?.to_owned();
    let is_it = |word: &OsStr| {
        word.to_str().and_then(|word| word.strip_prefix("--")).is_some_and(|word| word.starts_with(&long))
    };
    let given = std::env::args_os().any(|word| is_it(&word));
    let command = Cli::command();
    let argument = arguments_of(&command).find(|argument| argument.get_long() == Some(&long))?;
    let name = argument.get_env()?.to_string_lossy().into_owned();
    (!given && std::env::var_os(&name).is_some()).then_some(name)
}

fn complain(error: &anyhow::Error) -> ExitCode {
    // Further lines are indented under the first.
    remark(format_args!("error: {}", error.to_string().replace('\n', "\n       ")));
    let wrong_use = error.is::<ConfigError>() || error.is::<WrongUse>();
    ExitCode::from(if wrong_use { WRONG_USE } else { FAILED })
}

/// An argument or setting that makes no sense; the message says what would.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongUse(String);

async fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Serve(args) => serve::run(&args).await,
        Command::Extract(args) => extract::run(&args).await,
        Command::Check(args) => check::run(&args).await,
        Command::Demo(args) => demo::run(&args).await,
        Command::Simulate(args) => simulate::run(&args).await,
        Command::Openapi => {
            use std::io::Write as _;
            match writeln!(std::io::stdout(), "{}", crate::http::openapi::document().trim_end()) {
                // The reader closed the pipe: it has enough.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                written => written?,
            }
            Ok(WHOLE)
        }
        Command::Health(args) => health::run(&args).await,
    }
}

/// Standard output is for results; a closed pipe is not an error worth a panic.
fn say(line: impl std::fmt::Display) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Standard error is for people, apart from the results.
fn remark(line: impl std::fmt::Display) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// `12345678` as `12,345,678`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::collections::HashMap;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        assert_eq!(
            (grouped(7), grouped(1_234), grouped(12_345_678)),
            ("7".into(), "1,234".into(), "12,345,678".into())
        );
    }

    #[test]
    fn the_readme_tells_of_every_setting() {
        let readme = include_str!("../../README.md");
        for name in settings_of(&Cli::command()) {
            let name = name.to_str().unwrap();
            assert!(readme.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn the_readme_tells_every_default() {
        let in_ticks =
            |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        let mut told = HashMap::new();
        for line in include_str!("../../README.md").lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.split('|').collect();
            told.extend(in_ticks(cells[1]).into_iter().zip(in_ticks(cells[2])));
        }
        let same = |one: &str, other: &str| {
            one == other || one.parse::<f64>().is_ok_and(|one| other.parse() == Ok(one))
        };
        for argument in arguments_of(&Cli::command()) {
            let Some(name) = argument.get_env().and_then(OsStr::to_str) else { continue };
            let default = argument.get_default_values().first().map(|value| value.to_str().unwrap());
            let is_told = match (told.get(name), default) {
                (Some(told), Some(default)) => same(told, default),
                (told, default) => told.is_none() && default.is_none(),
            };
            assert!(is_told, "{name}: {default:?}, and the README says {:?}", told.get(name));
        }
    }
}
