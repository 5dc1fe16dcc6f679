//! One Zoom account: what all of its jobs share, and the source of their [`Lane`]s.
//!
//! Owns the HTTP client, the tokens, the budget, and what is known of outages. Sends nothing by itself.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::ToSpan;
use sha2::{Digest, Sha256};

use super::auth::{Credentials, Tokens};
use super::budget::{Budget, Waiting};
use super::call::{Call, PerEndpoint};
use super::error::RequestError;
use super::lane::Lane;
use super::outage::{DIFFERENT, Outage};
use super::readers::Readers;
use super::refusals::Fortunes;
use super::retry::RetryPolicy;
use super::transport::{NoClient, http_client};
use crate::clock::SharedClock;
use crate::days::DateRange;
use crate::sync::lock;

/// Everything needed to talk to an account.
#[derive(Debug, Clone)]
pub struct ZoomSettings {
    pub api_base: String,
    pub oauth_base: String,
    pub credentials: Credentials,
    /// Requests a second; `None` means no pacing.
    pub limit: Option<f64>,
    /// The share to use of a limit that Zoom names.
    pub rate_share: f64,
    /// The most requests a job may have in flight at the same time.
    pub in_flight: usize,
    pub connect_timeout: Duration,
    pub request_timeout: Duration,
    /// A request fails when its answer does not begin within this time, or then brings nothing for as long.
    pub idle_timeout: Duration,
    pub max_answer_bytes: usize,
    /// How long to wait for Zoom to answer again before a job fails.
    pub max_outage: Duration,
    pub retry: RetryPolicy,
}

impl ZoomSettings {
    /// The usual settings, without a limit.
    pub fn new(api_base: String, oauth_base: String, credentials: Credentials) -> Self {
        Self {
            api_base,
            oauth_base,
            credentials,
            limit: None,
            rate_share: 1.0,
            in_flight: 64,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(30),
            max_answer_bytes: 64 << 20,
            max_outage: Duration::from_secs(12 * 3_600),
            retry: RetryPolicy::default(),
        }
    }
}

/// An account: its client, tokens and budget.
pub struct Account {
    pub(super) http: reqwest::Client,
    pub(super) settings: ZoomSettings,
    pub(super) tokens: Tokens,
    pub(super) budget: Budget,
    pub(super) outages: PerEndpoint<Outage>,
    /// Calls that Zoom has answered, to be used as probes.
    answered: Mutex<Answered>,
    /// The number of [`Lane`]s in use.
    pub(super) lanes: AtomicUsize,
    pub(super) fortunes: Fortunes,
    pub(super) readers: Readers,
    pub(super) clock: SharedClock,
}

impl fmt::Debug for Account {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Account").field("budget", &self.budget).finish_non_exhaustive()
    }
}

impl Account {
    pub fn new(settings: ZoomSettings, clock: SharedClock) -> Result<Arc<Self>, NoClient> {
        let http = http_client(&settings)?;
        let tokens =
            Tokens::new(http.clone(), &settings.oauth_base, settings.credentials.clone(), clock.clone());
        let budget = Budget::new(settings.limit, clock.clone());
        let readers = Readers::new(clock.clone());
        let outage = |of| Outage::new(of, settings.max_outage, clock.clone());
        let outages = PerEndpoint { sessions: outage("the list of sessions"), messages: outage("messages") };
        let answered = Mutex::default();
        let (lanes, fortunes) = (AtomicUsize::new(0), Fortunes::default());
        Ok(Arc::new(Self {
            http,
            settings,
            tokens,
            budget,
            outages,
            answered,
            lanes,
            fortunes,
            readers,
            clock,
        }))
    }

    /// Describes the account's URLs and pace, without secrets.
    pub fn describe(&self) -> String {
        let pace = self
            .budget
            .limit()
            .map_or_else(|| "without pacing".to_owned(), |limit| format!("{limit} requests/s"));
        format!("API {}, tokens from {}, {pace}", self.settings.api_base, self.settings.oauth_base)
    }

    /// Identifies the account without revealing its id.
    pub fn fingerprint(&self) -> String {
        hex::encode(&Sha256::digest(&self.settings.credentials.account_id)[..16])
    }

    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Whether the bottleneck is a limit and not the processors.
    pub fn is_paced(&self) -> bool {
        self.budget.limit().is_some()
    }

    /// Whether there is processor time to spare: only with a limit, and while answers do not wait for a processor.
    pub fn processors_have_time(&self) -> bool {
        self.is_paced() && !self.readers.are_behind()
    }

    /// Why nothing is being sent at the moment, or nothing to one endpoint, if so.
    pub fn waiting(&self) -> Option<Waiting> {
        let mut probed = self.outages.all().into_iter().filter(|outage| outage.is_probed());
        self.budget.waiting().or_else(|| probed.find_map(Outage::waiting))
    }

    /// Whether this outcome looks like an outage of the call's endpoint. A gateway's refusal does so only if Zoom was reached
    /// before: otherwise the address may be wrong.
    pub(super) fn looks_like_an_outage(&self, call: &Call, error: &RequestError) -> bool {
        let was_reached = || match error {
            // All calls use the same tokens.
            RequestError::NoToken(_) => self.known().has_any(),
            _ => self.known().has_similar(call),
        };
        error.is_no_answer() || (error.came_from_gateway() && was_reached())
    }

    /// The outage state of this call's endpoint.
    pub(super) fn outage(&self, call: &Call) -> &Outage {
        self.outages.of(call)
    }

    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub(super) fn note_answer(&self, call: &Call) {
        self.outage(call).answered();
        self.remember(call);
    }

    /// Notes that this call was answered once, perhaps in an earlier process.
    pub fn remember(&self, call: &Call) {
        if call.page_token.is_none() {
            self.known().note(call);
        }
    }

    fn known(&self) -> MutexGuard<'_, Answered> {
        lock(&self.answered)
    }

    /// Returns the call with which to find out whether Zoom answers, after `call` was not answered. A request that always fails
    /// must not be taken for an outage, so the probe is a different one wherever possible.
    pub(super) fn probe_for(&self, call: &Call) -> Call {
        // A call that was answered before: of another session, or a list of other days.
        if let Some(known) = self.known().probe_for(call) {
            return known;
        }
        if self.outage(call).failing() >= DIFFERENT {
            return call.clone();
        }
        // A list of one day; if `call` is a list too, of a day that it does not cover.
        let (today, days) = (DateRange::day(self.clock.today()), call.days);
        let day_before = || DateRange::day(days.from.saturating_sub(1.day()));
        let days = if call.is_a_list() && days.covers(today) { day_before() } else { today };
        Call::sessions(days)
    }

    /// Returns a job's own queue at this account.
    pub fn lane(self: &Arc<Self>) -> Lane {
        Lane::new(self.clone())
    }
}

/// Calls for first pages that were answered: of a list, and of two different sessions.
#[derive(Debug, Default)]
struct Answered {
    list: Option<Call>,
    messages: VecDeque<Call>,
}

impl Answered {
    const SESSIONS: usize = 2;

    fn note(&mut self, call: &Call) {
        if call.is_a_list() {
            self.list = Some(call.clone());
            return;
        }
        self.messages.retain(|known| known.subject() != call.subject());
        self.messages.push_front(call.clone());
        self.messages.truncate(Self::SESSIONS);
    }

    fn has_any(&self) -> bool {
        self.list.is_some() || !self.messages.is_empty()
    }

    /// Whether Zoom has answered a call like this one: any list, or messages of another session.
    fn has_similar(&self, call: &Call) -> bool {
        if call.is_a_list() { self.list.is_some() } else { self.other_session(call).is_some() }
    }

    /// Returns a probe when `call` is not answered: a list with none of its days, or messages of other sessions, in rotation.
    fn probe_for(&mut self, call: &Call) -> Option<Call> {
        if call.is_a_list() {
            let is_of_other_days = |known: &&Call| !known.days.overlaps(call.days);
            return self.list.as_ref().filter(is_of_other_days).cloned();
        }
        let probe = self.other_session(call).cloned();
        self.messages.rotate_left(1.min(self.messages.len()));
        probe
    }

    fn other_session(&self, call: &Call) -> Option<&Call> {
        self.messages.iter().find(|known| known.subject() != call.subject())
    }
}
