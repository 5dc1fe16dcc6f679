//! Settings: flags first, then the environment, then `.env`. Each component gets its own settings struct, once.
//!
//! Owns names, defaults, and the checks that need more than one value. A wrong setting is named and stops the start.

mod dotenv;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use secrecy::{ExposeSecret, SecretString};

use crate::app::AppSettings;
use crate::extract::ExtractSettings;
use crate::http::{self, ApiKeys, HttpSettings, Rights};
use crate::jobs::JobSettings;
use crate::telemetry::LogFormat;
use crate::zoom::auth::Credentials;
use crate::zoom::retry::RetryPolicy;
use crate::zoom::{ZoomSettings, is_cleartext, wrong_environment};
pub use dotenv::load_dotenv;
pub use values::address;
use values::{base_url, decimal, duration, origin_of, secret, whole};

/// Names each wrong setting and says what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

/// The account's plan, which sets Zoom's limit for MEDIUM endpoints (Zoom's rate limit page).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Plan {
    /// 20 requests a second.
    Pro,
    /// Business, Education, Enterprise, Partners: 60 requests a second.
    #[value(aliases = ["education", "enterprise", "partners"])]
    Business,
}

impl Plan {
    fn requests_per_second(self) -> f64 {
        match self {
            Self::Pro => 20.0,
            Self::Business => 60.0,
        }
    }
}

/// The Zoom account and how to talk to it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Zoom account")]
pub struct ZoomArgs {
    /// Account ID of the Server-to-Server OAuth app
    #[arg(long, env = "ZOOM_ACCOUNT_ID", value_name = "ID", hide_env_values = true)]
    pub zoom_account_id: Option<String>,
    /// Client ID of the app
    #[arg(long, env = "ZOOM_CLIENT_ID", value_name = "ID", hide_env_values = true)]
    pub zoom_client_id: Option<String>,
    /// Client secret of the app; set it in the environment, as other users can see flags
    #[arg(long, env = "ZOOM_CLIENT_SECRET", value_name = "SECRET", hide_env_values = true, value_parser = secret)]
    pub zoom_client_secret: Option<SecretString>,
    /// The account's plan, which sets Zoom's limit: pro 20/s, business 60/s (also education, enterprise, partners)
    #[arg(long, env = "ZOOM_PLAN", value_name = "PLAN", default_value = "pro", ignore_case = true)]
    pub zoom_plan: Plan,
    /// Share of the rate limit to use; leave some for other apps of the account
    #[arg(long, env = "ZOOM_RATE_SHARE", value_name = "SHARE", default_value_t = 1.0, value_parser = decimal)]
    pub zoom_rate_share: f64,
    /// Requests a second, instead of plan and share; 0 disables pacing (for measurements only)
    #[arg(long, env = "ZOOM_RATE_LIMIT", value_name = "PER_SECOND", value_parser = decimal)]
    pub zoom_rate_limit: Option<f64>,
    /// Base URL of the API (a region, a government cloud, the simulator)
    #[arg(long, env = "ZOOM_API_BASE_URL", value_name = "URL", default_value = API_BASE_URL)]
    pub zoom_api_base_url: String,
    /// Base URL for OAuth tokens
    #[arg(long, env = "ZOOM_OAUTH_BASE_URL", value_name = "URL", default_value = OAUTH_BASE_URL)]
    pub zoom_oauth_base_url: String,
    /// Time limit for a whole request
    #[arg(long, env = "REQUEST_TIMEOUT", value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub request_timeout: Duration,
    /// Time limit for connecting
    #[arg(long, env = "CONNECT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub connect_timeout: Duration,
    /// Time limit without receiving any data
    #[arg(long, env = "IDLE_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub idle_timeout: Duration,
    /// The largest answer to accept, in bytes
    #[arg(long, env = "MAX_ANSWER_BYTES", value_name = "BYTES", default_value_t = 64 << 20, value_parser = whole::<usize>)]
    pub max_answer_bytes: usize,
    /// Attempts per request, including the first (use at least 8 with the real API)
    #[arg(long, env = "RETRY_ATTEMPTS", value_name = "N", default_value_t = 8, value_parser = whole::<u32>)]
    pub retry_attempts: u32,
    /// First delay before a retry; it doubles, up to 60 times this
    #[arg(long, env = "RETRY_BASE", value_name = "TIME", default_value = "500ms", value_parser = duration)]
    pub retry_base: Duration,
    /// How long a job waits out a Zoom outage before it fails (it can then be retried)
    #[arg(long, env = "MAX_OUTAGE", value_name = "TIME", default_value = "12h", value_parser = duration)]
    pub max_outage: Duration,
    /// Concurrent requests per job
    #[arg(long, env = "IN_FLIGHT", value_name = "N", default_value_t = 64, value_parser = whole::<usize>)]
    pub in_flight: usize,
}

/// The service.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Service")]
pub struct ServiceArgs {
    /// Address and port to listen on; any address but loopback requires API keys
    #[arg(long, env = "LISTEN_ADDR", value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = address)]
    pub listen_addr: SocketAddr,
    /// Keys that may call the API, comma-separated, each `key` or `name:key`
    #[arg(long, env = "API_KEYS", value_name = "KEYS", hide_env_values = true, value_parser = secret)]
    pub api_keys: Option<SecretString>,
    /// Read-only keys, in the same form: they may view jobs and download archives
    #[arg(long, env = "READ_ONLY_API_KEYS", value_name = "KEYS", hide_env_values = true, value_parser = secret)]
    pub read_only_api_keys: Option<SecretString>,
    /// File with more keys, one per line (`key` or `name:key`); prefix a line with `read-only ` for a read-only key
    #[arg(long, env = "API_KEYS_FILE", value_name = "FILE")]
    pub api_keys_file: Option<PathBuf>,
    /// Where to serve /metrics, without a key, instead of at LISTEN_ADDR
    #[arg(long, env = "METRICS_ADDR", value_name = "ADDR", value_parser = address)]
    pub metrics_addr: Option<SocketAddr>,
    /// Origins whose pages may call the API from a browser, comma-separated; none by default
    #[arg(long, env = "CORS_ORIGINS", value_name = "ORIGINS", value_delimiter = ',')]
    pub cors_origins: Vec<String>,
    /// Maximum number of concurrent connections
    #[arg(long, env = "MAX_CONNECTIONS", value_name = "N", default_value_t = http::DEFAULT_CONNECTIONS, value_parser = whole::<usize>)]
    pub max_connections: usize,
    /// Maximum number of concurrent event streams
    #[arg(long, env = "MAX_EVENT_STREAMS", value_name = "N", default_value_t = http::DEFAULT_EVENT_STREAMS, value_parser = whole::<usize>)]
    pub max_event_streams: usize,
    /// Maximum number of concurrent downloads
    #[arg(long, env = "MAX_DOWNLOADS", value_name = "N", default_value_t = http::DEFAULT_DOWNLOADS, value_parser = whole::<usize>)]
    pub max_downloads: usize,
    /// How long requests and downloads in progress may take to finish at shutdown
    #[arg(long, env = "SHUTDOWN_GRACE", value_name = "TIME", default_value = "8s", value_parser = duration)]
    pub shutdown_grace: Duration,
    /// Where jobs and archives are kept
    #[arg(long, env = "DATA_DIR", value_name = "DIR", default_value = "./data")]
    pub data_dir: PathBuf,
    /// Maximum number of running jobs
    #[arg(long, env = "MAX_RUNNING_JOBS", value_name = "N", default_value_t = 4, value_parser = whole::<usize>)]
    pub max_running_jobs: usize,
    /// Maximum number of queued jobs
    #[arg(long, env = "MAX_QUEUED_JOBS", value_name = "N", default_value_t = 100, value_parser = whole::<usize>)]
    pub max_queued_jobs: usize,
    /// How long a finished job keeps its files (30m, 12h, 7d)
    #[arg(long, env = "RETENTION", value_name = "TIME", default_value = "7d", value_parser = duration)]
    pub retention: Duration,
}

/// Logs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// Log format; by default JSON for `serve` and `simulate` unless standard error is a terminal, otherwise text
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT", global = true)]
    pub log_format: Option<LogFormat>,
}

const API_BASE_URL: &str = "https://api.zoom.us/v2";
const OAUTH_BASE_URL: &str = "https://zoom.us";
/// With fewer requests a second no job would ever finish.
const LEAST_LIMIT: f64 = 0.01;
/// Each may occupy one of the runtime's 512 blocking threads for most of its run.
const MOST_RUNNING_JOBS: usize = 256;
/// No server answers sooner.
const LEAST_TIMEOUT: Duration = Duration::from_millis(100);
/// The longest delay between retries is sixty times this.
const LONGEST_RETRY_BASE: Duration = Duration::from_mins(1);

impl ZoomArgs {
    pub fn settings(&self) -> Result<ZoomSettings, ConfigError> {
        let mut errors = Vec::new();
        let text = |value: &Option<String>| value.as_deref().unwrap_or_default().trim().to_owned();
        let (account_id, client_id) = (text(&self.zoom_account_id), text(&self.zoom_client_id));
        let client_secret = self.zoom_client_secret.clone().unwrap_or_default();
        for (name, value) in [
            ("ZOOM_ACCOUNT_ID", &account_id[..]),
            ("ZOOM_CLIENT_ID", &client_id),
            ("ZOOM_CLIENT_SECRET", client_secret.expose_secret()),
        ] {
            if value.is_empty() {
                errors.push(format!(
                    "{name} is not set, or empty; copy it from the app's \"App Credentials\" page in the Zoom App Marketplace"
                ));
            }
        }
        if !errors.is_empty() && !Path::new(".env").exists() {
            errors.push("there is no .env in the working directory".to_owned());
        }
        if !(self.zoom_rate_share > 0.0 && self.zoom_rate_share <= 1.0) {
            errors.push("ZOOM_RATE_SHARE must be above 0 and at most 1".to_owned());
        }
        if self.zoom_rate_limit.is_some_and(|limit| !(0.0..=10_000.0).contains(&limit)) {
            errors.push("ZOOM_RATE_LIMIT must be from 0 (no pacing) to 10000 requests a second".to_owned());
        } else if self.limit().is_some_and(|limit| limit < LEAST_LIMIT) {
            let name = if self.zoom_rate_limit.is_some() { "ZOOM_RATE_LIMIT" } else { "ZOOM_RATE_SHARE" };
            errors.push(format!("{name} must leave at least {LEAST_LIMIT} requests a second"));
        }
        for (name, time) in [
            ("REQUEST_TIMEOUT", self.request_timeout),
            ("CONNECT_TIMEOUT", self.connect_timeout),
            ("IDLE_TIMEOUT", self.idle_timeout),
        ] {
            if time < LEAST_TIMEOUT {
                errors.push(format!("{name} must be at least {} ms", LEAST_TIMEOUT.as_millis()));
            }
        }
        if self.retry_base > LONGEST_RETRY_BASE {
            errors.push(format!("RETRY_BASE must be at most {} s", LONGEST_RETRY_BASE.as_secs()));
        }
        let mut base_url = |name, text, usual| {
            base_url(text, usual).unwrap_or_else(|wrong| {
                errors.push(format!("{name} {wrong}"));
                String::new()
            })
        };
        let api_base = base_url("ZOOM_API_BASE_URL", &self.zoom_api_base_url, API_BASE_URL);
        let oauth_base = base_url("ZOOM_OAUTH_BASE_URL", &self.zoom_oauth_base_url, OAUTH_BASE_URL);
        errors.extend(wrong_environment());
        if self.retry_attempts == 0 {
            errors.push("RETRY_ATTEMPTS must be at least 1".to_owned());
        }
        if !(1..=1_024).contains(&self.in_flight) {
            errors.push("IN_FLIGHT must be from 1 to 1024".to_owned());
        }
        if self.max_answer_bytes < 1 << 16 {
            errors.push("MAX_ANSWER_BYTES must be at least 65536".to_owned());
        }
        if !errors.is_empty() {
            return Err(ConfigError(errors));
        }
        Ok(ZoomSettings {
            in_flight: self.in_flight,
            api_base,
            oauth_base,
            credentials: Credentials { account_id, client_id, client_secret },
            limit: self.limit(),
            rate_share: if self.zoom_rate_limit.is_some() { 1.0 } else { self.zoom_rate_share },
            connect_timeout: self.connect_timeout,
            request_timeout: self.request_timeout,
            idle_timeout: self.idle_timeout,
            max_answer_bytes: self.max_answer_bytes,
            max_outage: self.max_outage,
            retry: RetryPolicy {
                max_attempts: self.retry_attempts,
                base: self.retry_base,
                cap: self.retry_base * 60,
            },
        })
    }

    /// Warns about settings that work but are probably not intended.
    pub fn warnings(&self) -> Vec<String> {
        let urls = [
            ("ZOOM_API_BASE_URL", &self.zoom_api_base_url),
            ("ZOOM_OAUTH_BASE_URL", &self.zoom_oauth_base_url),
        ];
        let open = urls.into_iter().filter(|(_, url)| is_cleartext(url));
        open.map(|(name, _)| format!("{name} is not https: secrets and messages travel unencrypted"))
            .collect()
    }

    fn limit(&self) -> Option<f64> {
        match self.zoom_rate_limit {
            Some(0.0) => None,
            Some(limit) => Some(limit),
            None => Some(self.zoom_plan.requests_per_second() * self.zoom_rate_share),
        }
    }
}

impl ServiceArgs {
    /// Collects the keys of all three sources.
    fn keys(&self, errors: &mut Vec<String>) -> ApiKeys {
        let mut keys = ApiKeys::default();
        let file = self.api_keys_file.as_ref().map(|path| {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
            ApiKeys::parse_file(&text)
        });
        let parsed = |text: &Option<SecretString>, rights| {
            text.as_ref().map(|text| ApiKeys::parse(text.expose_secret(), rights))
        };
        for (name, source) in [
            ("API_KEYS", parsed(&self.api_keys, Rights::All)),
            ("READ_ONLY_API_KEYS", parsed(&self.read_only_api_keys, Rights::ReadOnly)),
            ("API_KEYS_FILE", file),
        ] {
            match source {
                // Whoever sets this wants keys to be required.
                Some(Ok(more)) if more.is_empty() => errors.push(format!("{name} contains no key")),
                Some(read) => {
                    if let Err(error) = read.and_then(|more| keys.add(more)) {
                        errors.push(format!("{name}: {error}"));
                    }
                }
                None => {}
            }
        }
        keys
    }

    pub fn settings(&self, zoom: &ZoomArgs) -> Result<AppSettings, ConfigError> {
        let mut errors = Vec::new();
        let api_keys = self.keys(&mut errors);
        // When keys could not be read, do not also complain that there are none.
        let is_open_to_all = errors.is_empty() && api_keys.is_empty();
        if is_open_to_all && !self.listen_addr.ip().is_loopback() {
            errors.push(format!(
                "LISTEN_ADDR {} can be reached from other machines: set API_KEYS, or listen on 127.0.0.1",
                self.listen_addr
            ));
        }
        if self.metrics_addr == Some(self.listen_addr) {
            errors.push(
                "METRICS_ADDR must differ from LISTEN_ADDR; leave it out to serve /metrics at LISTEN_ADDR"
                    .to_owned(),
            );
        }
        let counts = [
            ("MAX_RUNNING_JOBS", self.max_running_jobs),
            ("MAX_QUEUED_JOBS", self.max_queued_jobs),
            ("MAX_CONNECTIONS", self.max_connections),
            ("MAX_EVENT_STREAMS", self.max_event_streams),
            ("MAX_DOWNLOADS", self.max_downloads),
        ];
        for (name, _) in counts.into_iter().filter(|(_, count)| *count == 0) {
            errors.push(format!("{name} must be at least 1"));
        }
        if self.retention.is_zero() {
            errors.push("RETENTION must be longer than 0".to_owned());
        }
        if self.max_running_jobs > MOST_RUNNING_JOBS {
            errors.push(format!("MAX_RUNNING_JOBS must be at most {MOST_RUNNING_JOBS}"));
        }
        let cors_origins = self.cors_origins.iter().filter(|origin| !origin.trim().is_empty());
        let cors_origins: Vec<_> = cors_origins
            .filter_map(|origin| origin_of(origin.trim()).map_err(|error| errors.push(error)).ok())
            .collect();
        if !cors_origins.is_empty() && is_open_to_all {
            errors.push(
                "CORS_ORIGINS needs API_KEYS: without keys no web page may call the API, whatever its origin"
                    .to_owned(),
            );
        }
        let zoom_settings = match zoom.settings() {
            Ok(settings) if errors.is_empty() => settings,
            Ok(_) => return Err(ConfigError(errors)),
            Err(ConfigError(more)) => {
                errors.extend(more);
                return Err(ConfigError(errors));
            }
        };
        Ok(AppSettings {
            listen: self.listen_addr,
            http: HttpSettings {
                api_keys,
                max_connections: self.max_connections,
                max_event_streams: self.max_event_streams,
                max_downloads: self.max_downloads,
                cors_origins,
                metrics_listen: self.metrics_addr,
                shutdown_grace: self.shutdown_grace,
            },
            jobs: JobSettings {
                data_dir: self.data_dir.clone(),
                max_running: self.max_running_jobs,
                max_queued: self.max_queued_jobs,
                retention: self.retention,
                extract: ExtractSettings::default(),
            },
            zoom: zoom_settings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        zoom: ZoomArgs,
        #[command(flatten)]
        service: ServiceArgs,
    }

    fn settings(line: &str) -> Result<AppSettings, String> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.service.settings(&line.zoom).map_err(|error| error.to_string())
    }

    const ACCOUNT: &str = "--zoom-account-id a --zoom-client-id c --zoom-client-secret hush-hush";

    #[test]
    fn the_defaults_are_the_usual_settings() {
        let AppSettings { http, jobs, zoom, .. } = settings(ACCOUNT).unwrap();
        let [api, oauth] = [API_BASE_URL, OAUTH_BASE_URL].map(str::to_owned);
        let usual = ZoomSettings::new(api, oauth, zoom.credentials.clone());
        let limit = Some(Plan::Pro.requests_per_second());
        assert_eq!(format!("{zoom:?}"), format!("{:?}", ZoomSettings { limit, ..usual }));
        assert_eq!(format!("{jobs:?}"), format!("{:?}", JobSettings::in_directory("./data".into())));
        assert_eq!(format!("{http:?}"), format!("{:?}", HttpSettings::default()));
    }

    #[test]
    fn each_setting_reaches_its_component() {
        let line = "--request-timeout 11s --connect-timeout 12s --idle-timeout 13s --retry-attempts 14 --retry-base 15ms \
            --max-outage 16s --in-flight 17 --max-connections 18 --max-event-streams 19 --max-downloads 20 \
            --shutdown-grace 21s --max-running-jobs 22 --max-queued-jobs 23 --retention 24s --data-dir there \
            --listen-addr 127.0.0.1:25 --metrics-addr 127.0.0.1:26 --max-answer-bytes 70000 \
            --zoom-api-base-url https://a.example/v2 --zoom-oauth-base-url https://o.example";
        let AppSettings { listen, http, jobs, zoom } = settings(&format!("{ACCOUNT} {line}")).unwrap();
        let times = [zoom.request_timeout, zoom.connect_timeout, zoom.idle_timeout, zoom.max_outage];
        assert_eq!(times, [11, 12, 13, 16].map(Duration::from_secs));
        assert_eq!([http.shutdown_grace, jobs.retention], [21, 24].map(Duration::from_secs));
        assert_eq!((zoom.retry.max_attempts, zoom.retry.base), (14, Duration::from_millis(15)));
        assert_eq!([zoom.in_flight, zoom.max_answer_bytes], [17, 70_000]);
        assert_eq!([http.max_connections, http.max_event_streams, http.max_downloads], [18, 19, 20]);
        assert_eq!([jobs.max_running, jobs.max_queued], [22, 23]);
        assert_eq!([&zoom.api_base[..], &zoom.oauth_base], ["https://a.example/v2", "https://o.example"]);
        assert_eq!((listen.port(), http.metrics_listen.map(|address| address.port())), (25, Some(26)));
        assert_eq!(jobs.data_dir, Path::new("there"));
    }

    #[test]
    fn every_wrong_setting_is_named() {
        let error =
            settings("--listen-addr 0.0.0.0:80 --zoom-rate-share 2 --max-running-jobs 0").unwrap_err();
        for name in [
            "API_KEYS",
            "ZOOM_RATE_SHARE",
            "MAX_RUNNING_JOBS",
            "ZOOM_ACCOUNT_ID",
            "ZOOM_CLIENT_ID",
            "ZOOM_CLIENT_SECRET",
        ] {
            assert!(error.contains(name), "{name} in: {error}");
        }
        for (line, name) in [
            ("--retention soon", "retention"),
            ("--max-running-jobs 257", "MAX_RUNNING_JOBS must be at most 256"),
            ("--listen-addr nowhere", "listen-addr"),
            ("--zoom-plan free", "zoom-plan"),
            ("--zoom-rate-share 1e-9", "ZOOM_RATE_SHARE"),
            ("--zoom-rate-limit 0.001", "ZOOM_RATE_LIMIT"),
            ("--zoom-rate-limit NaN", "ZOOM_RATE_LIMIT"),
            ("--request-timeout 0s", "REQUEST_TIMEOUT"),
            ("--connect-timeout 5ms", "CONNECT_TIMEOUT"),
            ("--idle-timeout 0s", "IDLE_TIMEOUT"),
            ("--retry-base 7d", "RETRY_BASE"),
            ("--zoom-api-base-url ftp://x", "ZOOM_API_BASE_URL"),
            ("--zoom-api-base-url user:hush@x/v2", "an http or https URL, such as https://api.zoom.us/v2"),
            ("--cors-origins https://x.example,y,ftp://z --max-downloads 0", "MAX_DOWNLOADS"),
            ("--cors-origins https://x.example,y,ftp://z --max-downloads 0", "CORS_ORIGINS needs API_KEYS"),
            ("--cors-origins https://x.example,y,ftp://z", "not ftp://z"),
            ("--zoom-api-base-url https://x/v2?a=b", "ZOOM_API_BASE_URL"),
            ("--api-keys short", "API_KEYS"),
            ("--api-keys ,", "API_KEYS"),
            ("--api-keys '0123456789abcdef'", "without spaces and quotes"),
            ("--api-keys a:0123456789abcdef,b:0123456789abcdef", "API_KEYS: a key is listed twice"),
            (
                "--api-keys 0123456789abcdef --read-only-api-keys b:0123456789abcdef",
                "READ_ONLY_API_KEYS: a key is listed twice",
            ),
            ("--metrics-addr 127.0.0.1:8080", "METRICS_ADDR"),
            ("--api-keys-file /dev/null", "API_KEYS_FILE"),
        ] {
            let error = settings(&format!("{ACCOUNT} {line}")).unwrap_err();
            assert!(error.contains(name) && !error.contains("hush"), "{name} in: {error}");
        }
    }

    #[test]
    fn the_limit_follows_plan_and_share_unless_it_is_given() {
        let limit = |line: &str| settings(&format!("{ACCOUNT} {line}")).unwrap().zoom.limit;
        assert_eq!(limit(""), Some(20.0));
        assert_eq!(limit("--zoom-plan business --zoom-rate-share 0.5"), Some(30.0));
        assert_eq!(limit("--zoom-plan Enterprise"), Some(60.0));
        assert_eq!(limit("--zoom-rate-limit 7"), Some(7.0));
        assert_eq!(limit("--zoom-rate-limit 0"), None);
        let share = |line: &str| settings(&format!("{ACCOUNT} {line}")).unwrap().zoom.rate_share.to_string();
        let shares = ["--zoom-rate-share 0.5", "--zoom-rate-share 0.5 --zoom-rate-limit 7"].map(share);
        assert_eq!(shares, ["0.5", "1"], "of a limit that Zoom names");
    }

    #[test]
    fn settings_can_be_printed_without_secrets() {
        let printed =
            format!("{:?}", settings(&format!("{ACCOUNT} --api-keys me:0123456789abcdef")).unwrap());
        assert!(!printed.contains("hush-hush") && !printed.contains("0123456789abcdef"), "{printed}");
    }
}
