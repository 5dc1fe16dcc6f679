//! `extract`: one date range into a directory or a zip, with progress for a person or for a log.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::civil::Date;

use super::{WHOLE, WITH_FAILURES, WrongUse, grouped, remark, say};
use crate::app::one_job::{FailureLine, OneJob, OneJobError, Output, Report};
use crate::clock::{SharedClock, SystemClock};
use crate::config::ZoomArgs;
use crate::days::DateRange;
use crate::extract::check::help_for;
use crate::extract::windows::{oldest_reachable, parse_day, validate};
use crate::extract::{
    Damage, EditsBy, ExtractError, ExtractRequest, Include, RunSummary, SessionFilter, Snapshot,
};
use crate::files::is_there;
use crate::shutdown;

#[derive(Debug, Args)]
#[command(override_usage = "zoom-chat-reports extract [OPTIONS] --from-date <DATE> --to-date <DATE>")]
#[command(group(ArgGroup::new("output").args(["output_dir", "zip"])))]
#[command(after_help = "Run the same command again to resume an interrupted run and retry what failed.\n\
    Exit codes: 0 complete (even if there was nothing), 3 finished with failures, 1 failed, 2 invalid usage or settings.")]
pub(super) struct ExtractArgs {
    /// First day, UTC, yyyy-mm-dd; at most six months back
    #[arg(long, value_name = "DATE")]
    from_date: String,
    /// Last day (inclusive), UTC
    #[arg(long, value_name = "DATE")]
    to_date: String,
    /// Directory to write the files to
    #[arg(long, value_name = "DIR", default_value = "./zoom_chat_reports")]
    output_dir: PathBuf,
    /// Write one zip instead of a directory; missing parent directories are created
    #[arg(long, value_name = "FILE")]
    zip: Option<PathBuf>,
    /// Leave out earlier versions of edited messages
    #[arg(long)]
    no_edited: bool,
    /// Leave out deleted messages
    #[arg(long)]
    no_deleted: bool,
    /// Leave out what bots attached to messages
    #[arg(long)]
    no_bot: bool,
    /// Leave out reactions
    #[arg(long)]
    no_reactions: bool,
    #[command(flatten)]
    pub(super) zoom: ZoomArgs,
}

/// The most lines about what is missing; all of it is in `failures.json`.
const MISSING_SHOWN: usize = 20;

pub(super) async fn run(args: &ExtractArgs) -> anyhow::Result<u8> {
    let clock = SystemClock::shared();
    let output = args.zip.clone().map_or_else(|| Output::Directory(args.output_dir.clone()), Output::Zip);
    check_place(&output)?;
    let today = clock.today();
    // A begun extraction may be resumed even if its first days have left Zoom's reach meanwhile.
    let oldest = if output.is_begun() { Date::MIN } else { oldest_reachable(today) };
    let DateRange { from, to } = range(&args.from_date, &args.to_date, oldest, today)?;
    let request = ExtractRequest {
        from,
        to,
        include: Include {
            edited: !args.no_edited,
            deleted: !args.no_deleted,
            bot_messages: !args.no_bot,
            reactions: !args.no_reactions,
            custom_emoji_reactions: !args.no_reactions,
        },
        edits_by: EditsBy::SentTime,
        sessions: SessionFilter::default(),
        label: None,
    };
    let job = OneJob::prepare(args.zoom.settings()?, request, output.clone(), clock.clone()).await?;
    if job.continues {
        remark(format_args!("resuming from what {} already holds", output.working_directory().display()));
    } else {
        // What was begun there had received nothing, so the usual limit applies.
        range(&args.from_date, &args.to_date, oldest_reachable(today), today)?;
    }
    let stop = shutdown::on_signal(clock.clone())?;
    let mut reporter = Reporter::new(clock.clone());
    let mut has_received = false;
    let show = |snapshot: &Snapshot| {
        has_received |= snapshot.counts.sessions_total > 0;
        reporter.show(snapshot);
    };
    let ended = job.run(stop, show).await;
    reporter.clear();
    let report = ended.map_err(|error| explain(&error, &output, has_received))?;
    tell(&report, &output);
    Ok(if report.summary.counts.failures == 0 { WHOLE } else { WITH_FAILURES })
}

/// Checks what can be checked about the place before anything is created there.
fn check_place(output: &Output) -> Result<(), WrongUse> {
    let (path, setting) = (output.path(), output.setting());
    let objection = match output {
        Output::Zip(file) => {
            let is_directory = file.is_dir() || file.as_os_str().as_encoded_bytes().ends_with(b"/");
            let is_stream = file.as_os_str() == "-" || (file.exists() && !file.is_file());
            is_directory
                .then_some("must name a file, not a directory")
                .or(is_stream.then_some("must name a file of its own, not a stream or a device"))
        }
        Output::Directory(directory) => (is_there(directory) && !directory.is_dir())
            .then_some("must name a directory, but something else is there"),
    };
    let parent_is_a_file = path.parent().is_some_and(|parent| is_there(parent) && !parent.is_dir());
    let objection = objection
        .or(parent_is_a_file.then_some("must be in a directory; its parent is not one"))
        .or(path.to_str().is_none().then_some("must be UTF-8"));
    objection.map_or(Ok(()), |objection| Err(WrongUse(format!("{setting} {objection}: {}", path.display()))))
}

/// Parses and checks the two days; everything that is wrong with them is reported at once.
fn range(from: &str, to: &str, oldest: Date, today: Date) -> Result<DateRange, WrongUse> {
    let read = [("from", parse_day(from)), ("to", parse_day(to))];
    let [from, to] = read.each_ref().map(|(_, day)| day.as_ref().ok().copied());
    let unreadable = read.into_iter().filter_map(|(field, day)| Some((field, day.err()?)));
    let wrong = validate(oldest, from, to, today).into_iter().map(|error| (error.field(), error.to_string()));
    let errors: Vec<_> = unreadable.chain(wrong).collect();
    match (from, to) {
        (Some(from), Some(to)) if errors.is_empty() => Ok(DateRange { from, to }),
        _ => {
            let lines: Vec<_> =
                errors.iter().map(|(field, message)| format!("--{field}-date: {message}")).collect();
            Err(WrongUse(lines.join("\n")))
        }
    }
}

fn explain(error: &OneJobError, output: &Output, has_received: bool) -> anyhow::Error {
    let kept_in = output.working_directory();
    let go_on = format!("received data is kept in {}; run the same command to resume", kept_in.display());
    match error {
        stopped if stopped.is_cancellation() => anyhow::anyhow!("stopped; {go_on}"),
        OneJobError::Extract(ExtractError::Account(failure)) if has_received => {
            anyhow::anyhow!("{failure}\n{}\n{go_on}", help_for(failure.kind))
        }
        OneJobError::Extract(ExtractError::Account(failure)) => {
            anyhow::anyhow!("{failure}\n{}", help_for(failure.kind))
        }
        full if full.is_disk_full() => anyhow::anyhow!("{full}\nmake room first; {go_on}"),
        _ => anyhow::anyhow!("{error}\n{go_on}"),
    }
}

fn tell(report: &Report, output: &Output) {
    let RunSummary { counts, captured_until, damage, .. } = &report.summary;
    // If lists failed, nobody knows.
    if counts.sessions_total == 0 && counts.failures == 0 {
        say("there were no sessions in this range");
    }
    say(format_args!(
        "{}, {}, {} edited, {} deleted; {} in total, {} retried -> {}",
        counted(counts.sessions_total, "session"),
        counted(counts.messages, "message"),
        grouped(counts.edited_messages),
        grouped(counts.deleted_messages),
        counted(report.last.traffic.requests, "request"),
        grouped(report.last.traffic.retries),
        output.path().display()
    ));
    if let Some(archive) = &report.archive {
        say(format_args!("sha256 {}, {}", archive.sha256, counted(archive.size, "byte")));
    }
    if report.asked == 0 {
        say("nothing was left to request from Zoom");
    }
    match damage {
        Damage::None => {}
        Damage::Parts(_) => say("part of the received data was damaged and has been requested again"),
        Damage::All => {
            say("the index of the received data was damaged; everything has been requested again");
        }
    }
    for kept in &report.kept {
        say(format_args!("earlier data that the new output may lack is kept as {}", kept.display()));
    }
    for kept in &report.kept_earlier {
        say(format_args!(
            "{} is still there from an earlier run, and may hold data that the output lacks",
            kept.display()
        ));
    }
    if let Some(error) = &report.left {
        remark(format_args!(
            "{error}; remove this leftover capture: all of it is in {}",
            output.path().display()
        ));
    }
    if let Some(until) = captured_until {
        say(format_args!(
            "the last day is complete only until {until:.0}; extract it again later to another place"
        ));
    }
    let failures = counts.failures;
    if failures > 0 {
        say(format_args!("missing: {} (all listed in _metadata/failures.json)", counted(failures, "part")));
        let missing = of_adjoining_days(&report.failures);
        let mut shown = 0;
        for Missing { what, from, to, why, parts } in missing.iter().take(MISSING_SHOWN) {
            say(format_args!("  {what}, {from} to {to}: {why}"));
            shown += parts;
        }
        if failures > shown {
            say(format_args!("  and {} more", counted(failures - shown, "part")));
        }
        say("run the same command to retry them");
    }
}

/// Adjoining days that are missing for the same reason.
#[derive(Debug, PartialEq)]
struct Missing {
    what: String,
    from: Date,
    to: Date,
    why: String,
    parts: u64,
}

/// Merges failures of adjoining days: a month that could not be listed is a failure for each of its days.
fn of_adjoining_days(failures: &[FailureLine]) -> Vec<Missing> {
    let read = |failure: &FailureLine| {
        let what = failure.session_id.as_deref().map_or("listing".to_owned(), |id| format!("session {id:?}"));
        let FailureLine { from, to, failure: note, .. } = failure;
        Missing { what, from: *from, to: *to, why: format!("{}: {}", note.code, note.message), parts: 1 }
    };
    let mut all: Vec<Missing> = failures.iter().map(read).collect();
    all.sort_by(|one, other| (&one.what, &one.why, one.from).cmp(&(&other.what, &other.why, other.from)));
    all.dedup_by(|next, last| {
        let adjoins = last.to.tomorrow().is_ok_and(|day| day == next.from);
        let is_one = adjoins && last.what == next.what && last.why == next.why;
        if is_one {
            (last.to, last.parts) = (next.to, last.parts + next.parts);
        }
        is_one
    });
    all
}

fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// A bar on a terminal; elsewhere a line every ten seconds, or every ten minutes while the same wait lasts.
struct Reporter {
    clock: SharedClock,
    bar: Option<ProgressBar>,
    last_line: Duration,
    /// The reason for waiting that the last line gave.
    told: Option<String>,
}

const LINE_EVERY: Duration = Duration::from_secs(10);
const WAITING_LINE_EVERY: Duration = Duration::from_secs(600);

impl Reporter {
    fn new(clock: SharedClock) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1_000);
            let style = ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}");
            bar.set_style(style.expect("the template is well formed"));
            bar
        });
        Self { last_line: clock.elapsed(), clock, bar, told: None }
    }

    fn show(&mut self, snapshot: &Snapshot) {
        let (text, now) = (line(snapshot), self.clock.elapsed());
        let reason = snapshot.waiting.as_ref().map(|waiting| waiting.reason.clone());
        let is_told = reason.is_some() && reason == self.told;
        let every = if is_told { WAITING_LINE_EVERY } else { LINE_EVERY };
        if let Some(bar) = &self.bar {
            bar.set_position((snapshot.percent.unwrap_or(0.0) * 10.0) as u64);
            bar.set_message(text);
        } else if now.saturating_sub(self.last_line) >= every {
            (self.last_line, self.told) = (now, reason);
            let percent = snapshot.percent.unwrap_or(0.0);
            remark(format_args!("{:.0}  {percent:.1} %  {text}", self.clock.now()));
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn line(snapshot: &Snapshot) -> String {
    let counts = snapshot.counts;
    let mut text = format!(
        "windows {}/{}  sessions {}/{}  messages {}  {:.1}/s",
        counts.windows_listed,
        counts.windows_total,
        grouped(counts.sessions_done),
        grouped(counts.sessions_total),
        grouped(counts.messages),
        snapshot.requests_per_second.unwrap_or(0.0)
    );
    if let Some(waiting) = &snapshot.waiting {
        text.push_str(&format!("  waiting until {:.0}: {}", waiting.until, waiting.reason));
    } else if snapshot.retrying > 0 {
        text.push_str(&format!("  {} to be retried", counted(snapshot.retrying, "request")));
    } else if let Some(seconds) = snapshot.eta_seconds {
        text.push_str(&format!("  about {} left", clock_face(seconds)));
    }
    if counts.failures > 0 {
        text.push_str(&format!("  {} missing", counted(counts.failures, "part")));
    }
    text
}

fn clock_face(seconds: u64) -> String {
    match (seconds / 3_600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::FailureNote;

    #[test]
    fn failures_of_adjoining_days_are_one_line() {
        let failure = |session: Option<&str>, from: &str, to: &str, code: &str| {
            let [from, to] = [from, to].map(|day| day.parse().unwrap());
            let (code, message) = (code.to_owned(), String::new());
            FailureLine {
                what: "listing",
                session_id: session.map(str::to_owned),
                window_from: from,
                window_to: to,
                from,
                to,
                failure: FailureNote { code, status: None, zoom_code: None, message, attempts: 3 },
                failed_at: String::new(),
                messages_captured: 0,
            }
        };
        let failures = [
            failure(None, "2026-07-31", "2026-07-31", "a"),
            failure(None, "2026-07-30", "2026-07-30", "a"),
            failure(Some("s"), "2026-07-01", "2026-07-31", "a"),
            failure(None, "2026-08-01", "2026-08-01", "b"),
            failure(Some("s"), "2026-08-01", "2026-08-31", "a"),
            failure(Some("s"), "2026-09-02", "2026-09-30", "a"),
        ];
        let lines: Vec<_> = of_adjoining_days(&failures)
            .into_iter()
            .map(|missing| format!("{} {} {} {}", missing.what, missing.from, missing.to, missing.parts))
            .collect();
        assert_eq!(
            lines,
            [
                "listing 2026-07-30 2026-07-31 2",
                "listing 2026-08-01 2026-08-01 1",
                "session \"s\" 2026-07-01 2026-08-31 2",
                "session \"s\" 2026-09-02 2026-09-30 1",
            ]
        );
    }
}
