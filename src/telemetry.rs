//! Logs and metrics: where they go and in which form.
//!
//! Text for people at a terminal, JSON for machines; always to standard error, so that standard output is for results.

use std::io::IsTerminal;
use std::sync::OnceLock;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

impl LogFormat {
    /// For a service: a machine reads its log, unless that goes to a terminal.
    pub fn of_a_service() -> Self {
        if std::io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// Starts logging. `RUST_LOG` overrides the level; if it is invalid, the error says why. A second call changes nothing.
pub fn init(format: LogFormat, default_level: &str) -> Result<(), String> {
    let wanted = std::env::var_os("RUST_LOG").unwrap_or_default();
    let filter = if wanted.is_empty() {
        // The verifier logs every failed handshake; our own error reports them once.
        EnvFilter::new(format!("warn,rustls_platform_verifier=off,zoom_chat_reports={default_level}"))
    } else {
        filter(&wanted.to_string_lossy()).map_err(|wrong| {
            format!("RUST_LOG must be a level or targets with levels, such as info,zoom_chat_reports=debug: {wrong}")
        })?
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Otherwise a line that cannot be written to stderr would be reported there, which fails as well, and panics.
    let builder = builder.log_internal_errors(false);
    let _ = match format {
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    Ok(())
}

/// Parses `RUST_LOG`. A bare word that is not a level would be taken for a target and silence everything else; it is treated as
/// a misspelt level.
fn filter(wanted: &str) -> Result<EnvFilter, String> {
    let is_a_word = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let words = wanted.split(',').map(str::trim).filter(is_a_word);
    match words.into_iter().find(|word| word.parse::<LevelFilter>().is_err()) {
        Some(word) => Err(format!("{word} is not a level")),
        None => EnvFilter::try_new(wanted).map_err(|error| error.to_string()),
    }
}

/// The process's metrics; the recorder is installed at the first call.
pub fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        // If another recorder is installed already, ours merely stays empty.
        let _ = metrics::set_global_recorder(recorder);
        describe();
        handle
    })
}

/// Describes every metric of this service.
fn describe() {
    use metrics::{describe_counter, describe_gauge};
    describe_gauge!("zcr_jobs_running", "Running jobs");
    describe_gauge!("zcr_jobs_queued", "Queued jobs");
    describe_counter!("zcr_jobs_ended_total", "Ended jobs, by final state");
    describe_gauge!(
        "zcr_waiting",
        "1 while some or all requests to Zoom are on hold (rate limit, outage), else 0"
    );
    describe_counter!("zcr_http_responses_total", "Responses of this service, by status");
    for (counter, what) in [
        ("zcr_zoom_requests_total", "Requests sent to Zoom"),
        ("zcr_zoom_rate_limited_total", "Responses from Zoom with status 429"),
        ("zcr_audit_failures_total", "Lines that could not be written to the audit trail"),
    ] {
        describe_counter!(counter, what);
        // Exported from the start: an alert on the first increase needs to have seen zero.
        metrics::counter!(counter).increment(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_no_target() {
        for (wanted, is_fine) in [
            ("info", true),
            ("INFO,zoom_chat_reports=debug", true),
            ("off,hyper=trace, 3", true),
            ("zoom_chat_reports", true),
            ("inf", false),
            ("warn,debugg", false),
            ("zoom_chat_reports=debugg", false),
            ("\u{fffd}", false),
        ] {
            assert_eq!(filter(wanted).is_ok(), is_fine, "{wanted}");
        }
    }
}
