//! One account of Zoom: what all of its jobs share, and their ways to it ([`Lane`]).
//!
//! Owns the HTTP client, the tokens, the budget, and what is known of an outage. Asks nothing by itself.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::ToSpan;
use sha2::{Digest, Sha256};

use super::auth::{Credentials, Tokens};
use super::budget::{Budget, Waiting};
use super::call::{Call, Endpoint, OfEndpoints};
use super::error::RequestError;
use super::lane::Lane;
use super::outage::{DIFFERENT, Outage};
use super::readers::Readers;
use super::retry::RetryPolicy;
use super::transport::{NoClient, http_client};
use crate::clock::SharedClock;
use crate::days::DateRange;

/// What an account needs to be talked to.
#[derive(Debug, Clone)]
pub struct ZoomSettings {
    pub api_base: String,
    pub oauth_base: String,
    pub credentials: Credentials,
    /// Requests a second; `None` asks without pacing.
    pub limit: Option<f64>,
    /// Of what Zoom names as the account's limit.
    pub rate_share: f64,
    /// The most requests of a job that are under way at the same time.
    pub in_flight: usize,
    pub connect_timeout: Duration,
    pub request_timeout: Duration,
    /// No byte of a body for this long ends the request.
    pub idle_timeout: Duration,
    pub max_answer_bytes: usize,
    /// How long to wait for Zoom to answer again before a job fails.
    pub max_outage: Duration,
    pub retry: RetryPolicy,
}

/// An account: its client, tokens and budget.
pub struct Account {
    pub(super) http: reqwest::Client,
    pub(super) settings: ZoomSettings,
    pub(super) tokens: Tokens,
    pub(super) budget: Budget,
    pub(super) outages: OfEndpoints<Outage>,
    /// What Zoom is asked to find out whether it answers.
    answered: Mutex<Answered>,
    /// Jobs under way.
    pub(super) lanes: AtomicUsize,
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
        let outages = OfEndpoints { sessions: outage("the list of sessions"), messages: outage("messages") };
        let answered = Mutex::default();
        let lanes = AtomicUsize::new(0);
        Ok(Arc::new(Self { http, settings, tokens, budget, outages, answered, lanes, readers, clock }))
    }

    /// Where it points and how fast it may ask, without secrets.
    pub fn describe(&self) -> String {
        let pace = self
            .budget
            .limit()
            .map_or_else(|| "without pacing".to_owned(), |limit| format!("{limit} requests/s"));
        format!("API {}, tokens from {}, {pace}", self.settings.api_base, self.settings.oauth_base)
    }

    /// Tells the account from others, without naming it.
    pub fn fingerprint(&self) -> String {
        hex::encode(&Sha256::digest(&self.settings.credentials.account_id)[..16])
    }

    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Whether a limit is what holds jobs up, and not the processors.
    pub fn is_paced(&self) -> bool {
        self.budget.limit().is_some()
    }

    /// Whether the processors have time for more than must be: with a limit, as long as answers do not wait for them.
    pub fn processors_have_time(&self) -> bool {
        self.is_paced() && !self.readers.are_behind()
    }

    /// Why nothing is being asked at the moment, or of one endpoint, if so.
    pub fn waiting(&self) -> Option<Waiting> {
        self.budget.waiting().or_else(|| self.outages.all().into_iter().find_map(Outage::waiting))
    }

    /// Whether this is what an outage of that endpoint looks like: a gateway's refusals only where Zoom was reached before, as
    /// they would else be of a wrong address.
    pub(super) fn looks_like_an_outage(&self, call: &Call, error: &RequestError) -> bool {
        error.looks_like_an_outage() || (error.came_from_gateway() && self.known().any_like(call))
    }

    /// Whether the endpoint of this call answers.
    pub(super) fn outage(&self, call: &Call) -> &Outage {
        self.outages.of(call.endpoint())
    }

    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub(super) fn note_answer(&self, call: &Call) {
        self.outage(call).answered();
        self.remember(call);
    }

    /// This was answered once, to another process perhaps.
    pub fn remember(&self, call: &Call) {
        if call.page_token().is_none() {
            self.known().note(call);
        }
    }

    fn known(&self) -> MutexGuard<'_, Answered> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to ask to find out whether Zoom answers, when `call` was not answered. A request that always fails must not be taken
    /// for an outage, so it is another one wherever possible.
    pub(super) fn probe_for(&self, call: &Call) -> Call {
        // One that was answered before: of another session, or a list of other days.
        if let Some(known) = self.known().probe_for(call) {
            return known;
        }
        let is_a_list = call.endpoint() == Endpoint::Sessions;
        if self.outage(call).failing() >= DIFFERENT {
            return call.clone();
        }
        // Of a day that the list itself is not of.
        let (today, days) = (DateRange::day(self.clock.today()), call.days());
        let day_before = || DateRange::day(days.from.saturating_sub(1.day()));
        let days = if is_a_list && days.covers(today) { day_before() } else { today };
        Call::ListSessions { days, page_token: None }
    }

    /// A job's own queue at this account.
    pub fn lane(self: &Arc<Self>) -> Lane {
        Lane::new(self.clone())
    }
}

/// First pages that were answered: of a list, and of two different sessions, the latest first.
#[derive(Debug, Default)]
struct Answered {
    list: Option<Call>,
    messages: VecDeque<Call>,
}

impl Answered {
    const SESSIONS: usize = 2;

    fn note(&mut self, call: &Call) {
        if call.endpoint() == Endpoint::Sessions {
            self.list = Some(call.clone());
            return;
        }
        self.messages.retain(|known| known.subject() != call.subject());
        self.messages.push_front(call.clone());
        self.messages.truncate(Self::SESSIONS);
    }

    /// Whether Zoom has answered the like of it: any list, or messages of another session.
    fn any_like(&self, call: &Call) -> bool {
        match call.endpoint() {
            Endpoint::Sessions => self.list.is_some(),
            Endpoint::Messages => self.other_session(call).is_some(),
        }
    }

    /// What to ask when this is not answered: a list of none of its days, or messages of other sessions, in turns.
    fn probe_for(&mut self, call: &Call) -> Option<Call> {
        if call.endpoint() == Endpoint::Sessions {
            let is_of_others = |known: &&Call| !known.days().overlaps(call.days());
            return self.list.as_ref().filter(is_of_others).cloned();
        }
        let probe = self.other_session(call).cloned();
        self.messages.rotate_left(1.min(self.messages.len()));
        probe
    }

    fn other_session(&self, call: &Call) -> Option<&Call> {
        self.messages.iter().find(|known| known.subject() != call.subject())
    }
}
