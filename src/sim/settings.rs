//! The settings of a simulator, and the levels of random faults.
//!
//! Values only: nothing here reads flags, environment or files, and nothing is validated beyond what the types say.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use jiff::civil::Date;

/// How a simulated account looks and how its server behaves.
#[derive(Clone, Debug)]
pub struct SimSettings {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Everything that looks random follows from this number.
    pub seed: u64,
    pub sessions: u32,
    /// How many messages the `messages` arrays hold over all sessions and days. Deleted ones come on top.
    pub messages: u64,
    /// The messages lie in the days from `months` calendar months before today up to yesterday.
    pub months: u32,
    /// Report requests admitted in any one second; 0 is unlimited.
    pub qps: u32,
    /// Report requests admitted on one UTC day; 0 is unlimited.
    pub daily_limit: u64,
    pub latency: Duration,
    /// Latency is uniform in `latency - latency_jitter ..= latency + latency_jitter`, never below zero.
    pub latency_jitter: Duration,
    pub faults: FaultLevel,
    pub token_ttl: Duration,
    pub page_token_ttl: Duration,
    /// `None`: the system's date in UTC, read again at each request.
    pub today: Option<Date>,
    pub account_id: String,
    pub client_id: String,
    pub client_secret: String,
    pub scopes: Vec<String>,
    /// Share of all messages that session 0 holds.
    pub heaviest_share: f64,
    /// How many times longer than usual messages are.
    pub text_scale: u32,
    /// Whether some sessions have ids and names that break careless clients, and some messages contain JSON that is legal but
    /// that a strict parser refuses (a lone surrogate escape, a number beyond any float).
    pub hostile: bool,
    /// Whether a request for days of a session without any items answers 404 instead of an empty page; Zoom does not document
    /// which of the two it does.
    pub empty_is_not_found: bool,
    /// Whether a session's messages are served newest first; Zoom does not document the order either. Queries that select
    /// modifications by their own time stay in chronological order.
    pub newest_first: bool,
}

impl Default for SimSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            seed: 1,
            sessions: 60,
            messages: 6_000,
            months: 2,
            qps: 0,
            daily_limit: 0,
            latency: Duration::ZERO,
            latency_jitter: Duration::ZERO,
            faults: FaultLevel::None,
            token_ttl: Duration::from_secs(3_600),
            page_token_ttl: Duration::from_secs(15 * 60),
            today: None,
            account_id: "sim-account".to_owned(),
            client_id: "sim-client".to_owned(),
            client_secret: "sim-secret".to_owned(),
            scopes: vec!["report_chat:read:admin".to_owned(), "imchat:read:admin".to_owned()],
            heaviest_share: 0.15,
            text_scale: 1,
            hostile: true,
            empty_is_not_found: false,
            newest_first: false,
        }
    }
}

/// How often and how badly answers go wrong by themselves. Scripted faults come on top of any level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FaultLevel {
    /// No random faults.
    None,
    /// About 2 % of requests fail, but succeed when repeated.
    Light,
    /// About 6 % fail that way, one session always fails, one listed session does not exist, and one month cannot be listed.
    Nasty,
}
