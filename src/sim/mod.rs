//! A simulator of the parts of Zoom's HTTP API that reports need: for `demo`, `simulate`, tests and measurements only.
//!
//! Imports nothing of this crate and shares no type with `zoom::wire`: a field misspelt on both sides would pass every test.
//! Content is computed from a seed instead of stored (`dataset`, `feed`, `render`), so that an account of ten million messages
//! needs no memory; `query` parses requests, `api` answers them (worded by `answers`), `limits` refuses, `faults` injects
//! errors, `server` owns the sockets.

mod answers;
mod api;
mod calendar;
mod dataset;
mod encoding;
mod faults;
mod feed;
mod hostile;
mod limits;
mod noise;
mod query;
mod render;
mod server;
mod settings;
mod sizes;
mod tokens;
mod words;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use dataset::{Dataset, ItemOptions, SimSession};
pub use faults::{FaultAnswer, Match, ScriptedFault};
pub use feed::ItemKind;
pub use settings::{FaultLevel, SimSettings};

/// Statistics of what has happened so far.
#[derive(Clone, Debug, Default)]
pub struct SimStats {
    /// Report requests that arrived, refused ones included.
    pub requests: u64,
    pub token_requests: u64,
    pub list_requests: u64,
    pub message_requests: u64,
    /// Answers with status 429.
    pub rate_limited: u64,
    pub faults: u64,
    pub pages_served: u64,
    /// Arrivals in the busiest second.
    pub max_in_one_second: u32,
    pub first_request: Option<Instant>,
    pub last_request: Option<Instant>,
}

/// A running simulator.
#[derive(Debug)]
pub struct Simulator {
    api: Arc<api::Api>,
    addr: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Simulator {
    pub async fn start(settings: SimSettings) -> io::Result<Self> {
        let listener = TcpListener::bind(settings.listen).await?;
        let addr = listener.local_addr()?;
        let api = api::Api::new(settings);
        let stop = CancellationToken::new();
        let server = tokio::spawn(server::accept(listener, api.clone(), stop.clone()));
        Ok(Self { api, addr, stop, server })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn api_base_url(&self) -> String {
        format!("http://{}/v2", self.addr)
    }

    pub fn oauth_base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn dataset(&self) -> &Dataset {
        &self.api.data
    }

    pub fn stats(&self) -> SimStats {
        self.api.with(|changing| SimStats {
            faults: changing.faults.count,
            max_in_one_second: changing.limits.most_in_one_second,
            ..changing.stats.clone()
        })
    }

    /// Adds a fault; faults are tried in the order in which they were added.
    pub fn script(&self, fault: ScriptedFault) {
        self.api.with(|changing| changing.faults.script(fault));
    }

    /// Forgets all scripted faults.
    pub fn clear_script(&self) {
        self.api.with(|changing| changing.faults.clear_script());
    }

    /// Changes the per-second limit; 0 is unlimited.
    pub fn set_qps(&self, qps: u32) {
        self.api.with(|changing| changing.qps = qps);
    }

    /// Changes the daily limit; 0 is unlimited.
    pub fn set_daily_limit(&self, daily_limit: u64) {
        self.api.with(|changing| changing.daily_limit = daily_limit);
    }

    /// Every access token issued so far.
    pub fn access_tokens(&self) -> Vec<String> {
        self.api.with(|changing| changing.tokens.all.clone())
    }

    /// Lets every page token issued so far expire.
    pub fn expire_page_tokens(&self) {
        self.api.with(|changing| changing.page_tokens_expired_at = calendar::now_ms());
    }

    /// Revokes every access token issued so far.
    pub fn revoke_tokens(&self) {
        self.api.with(|changing| changing.tokens.revoke_all());
    }

    /// Sets the app's scopes; tokens issued before keep theirs.
    pub fn set_scopes(&self, scopes: &[&str]) {
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        self.api.with(|changing| changing.scopes = scopes);
    }

    /// Sets whether the client's id and secret are accepted.
    pub fn set_credentials_valid(&self, valid: bool) {
        self.api.with(|changing| changing.credentials_valid = valid);
    }

    /// While down, everything is answered with 503.
    pub fn set_down(&self, down: bool) {
        self.api.with(|changing| changing.down = down);
    }

    pub async fn shutdown(self) {
        self.stop.cancel();
        // A panic of the accept loop has been printed already.
        let _ = self.server.await;
    }
}
