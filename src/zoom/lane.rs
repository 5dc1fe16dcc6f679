//! One job's way to Zoom: its callers queue, take their turn at the account's budget, and retry until they are answered.
//!
//! Owns the loop of turn, token, budget, send, classify, retry. How much should be in flight is decided in `load`. Does not
//! interpret pages: the caller passes a reader, and an answer that the reader rejects counts as unreadable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::HeaderMap;
use secrecy::ExposeSecret;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::auth::Token;
use super::budget::Waiting;
use super::call::{Call, PerEndpoint};
use super::client::Account;
use super::error::{Failure, FailureKind, LimitKind, Refusal, RequestError};
use super::load::Latency;
use super::readers::ReadResult;
use super::refusals::InARow;
use super::retry::{Decision, RetryPolicy, Tries};
use super::transport::{collect, describe};
use super::turns::{Rank, TurnQueue};

/// How hard to try.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// The maximum number of attempts, including the first, if fewer than usual.
    pub at_most: Option<u32>,
    /// Whether to wait for the end of an outage. A person waiting for the result would rather be told.
    pub waits_out_outages: bool,
    pub urgency: Urgency,
}

/// What a call holds up. Urgent calls get more of the turns; among them, the one with the most calls to follow goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Nothing but its own chain of pages.
    Usual,
    /// The end of the job: about so many calls must follow this one, one after the other.
    EndOfJob { calls_to_follow: u32 },
    /// Everything else that the job has to do.
    Everything,
}

/// What one job has asked of Zoom. Counters only grow.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Requests sent, repetitions included.
    pub requests: AtomicU64,
    /// Requests sent again after a bad answer; not after a 429, an outage, or an expired page token.
    pub retries: AtomicU64,
    /// Answers with status 429.
    pub rate_limited: AtomicU64,
    /// Bytes of bodies received, after decompression.
    pub bytes: AtomicU64,
}

impl Traffic {
    /// The mean size of an answer in bytes.
    pub(super) fn mean_answer(&self) -> u64 {
        (self.bytes.load(Relaxed) / self.requests.load(Relaxed).max(1)).max(1)
    }
}

/// A try that got no usable answer.
struct FailedTry {
    error: RequestError,
    /// The generation of the token it was sent with; `None` if there was no token, and nothing was sent.
    generation: Option<u64>,
}

/// Adds one to the counter until dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn among(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One job's way to Zoom. Its callers queue here first, so that jobs take turns at the account's budget and a job holds no more
/// answers at the same time than it may.
#[derive(Debug)]
pub struct Lane {
    pub(super) account: Arc<Account>,
    pub(super) turns: Arc<TurnQueue>,
    under_way: Semaphore,
    pub traffic: Traffic,
    pub(super) latency: Latency,
    /// Callers that wait until an endpoint answers again.
    waiting_out: PerEndpoint<AtomicUsize>,
    /// Callers that wait before they send a request again.
    backing_off: AtomicUsize,
}

/// What holds a job up.
#[derive(Debug, Clone, Default)]
pub struct Stalled {
    /// Why the job, or some of its callers, cannot send anything at the moment.
    pub waiting: Option<Waiting>,
    /// The requests that wait for their next attempt, if those are most of what is left to do; else 0.
    pub retrying: u64,
}

/// A longer wait after a 429 is a pause: users are shown it, and it survives a restart.
const SHORT_WAIT: Duration = Duration::from_secs(10);
/// How long to pause when Zoom refuses every request and names no time.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// A refusal's body is ignored if it is larger.
const MOST_OF_A_REFUSAL: usize = 64 << 10;

impl Drop for Lane {
    fn drop(&mut self) {
        self.account.lanes.fetch_sub(1, Relaxed);
    }
}

impl Lane {
    pub(super) fn new(account: Arc<Account>) -> Self {
        account.lanes.fetch_add(1, Relaxed);
        Self {
            turns: Arc::default(),
            under_way: Semaphore::new(account.settings.in_flight),
            account,
            traffic: Traffic::default(),
            latency: Latency::default(),
            waiting_out: PerEndpoint::default(),
            backing_off: AtomicUsize::default(),
        }
    }

    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Sends `call` until it is answered or has failed for good. On a large body, `read` runs on one of the reader threads.
    pub async fn fetch<T, R>(&self, call: &Call, effort: Effort, read: R) -> Result<T, Failure>
    where
        T: Send + 'static,
        R: Fn(Bytes) -> ReadResult<T> + Clone + Send + 'static,
    {
        let account = &*self.account;
        let (mut tries, mut refusals) = (Tries::default(), InARow::default());
        let outage = account.outage(call);
        let mut sent = outage.mark();
        loop {
            if effort.waits_out_outages && outage.is_on() {
                self.wait_out(call).await?;
            }
            let before = std::mem::replace(&mut sent, outage.mark());
            if sent.saw_outage_since(before) {
                tries = Tries::default();
            }
            let FailedTry { error, generation } = match self.send(call, effort.urgency, read.clone()).await {
                Ok(answer) => {
                    account.note_answer(call);
                    return Ok(answer);
                }
                Err(failed) => failed,
            };
            let attempt = tries.count(&error);
            let now = account.clock.now();
            let decision = self.decide(&error, attempt, effort, now);
            tracing::debug!(attempt, what = error.describe(), ?decision, "a request failed");
            if !account.looks_like_an_outage(call, &error) {
                outage.answered();
            } else if effort.waits_out_outages
                && outage.failed(call.subject(), matches!(decision, Decision::Fail(_)), sent)
                && self.wait_out(call).await?
            {
                continue;
            }
            self.heed(&decision, generation, now);
            if matches!(decision, Decision::Limited { kind: LimitKind::PerSecond, .. }) {
                refusals.note(&account.fortunes);
            } else {
                refusals = InARow::default();
            }
            match decision {
                Decision::Fail(kind) => return Err(error.into_failure(kind, attempt)),
                Decision::Limited { .. } => {
                    if refusals.are_too_many(&account.fortunes, effort.waits_out_outages) {
                        return Err(error.into_failure(FailureKind::RateLimited, refusals.count));
                    }
                    if refusals.need_comparison() {
                        // If that is answered, `fortunes` know.
                        let _ = self.probe(call).await;
                    }
                    let random = account.clock.random();
                    if let Some(after) = refusals.delay(&account.fortunes, account.settings.retry, random) {
                        let _backs_off = Counted::among(&self.backing_off);
                        account.clock.sleep(after).await;
                    }
                }
                Decision::RenewToken { after } | Decision::Retry { after } => {
                    // Without a token nothing was sent.
                    self.traffic.retries.fetch_add(u64::from(generation.is_some()), Relaxed);
                    let _backs_off = Counted::among(&self.backing_off);
                    account.clock.sleep(after).await;
                }
            }
        }
    }

    fn decide(&self, error: &RequestError, attempt: u32, effort: Effort, now: Timestamp) -> Decision {
        let account = &*self.account;
        let usual = account.settings.retry;
        let max_attempts = effort.at_most.map_or(usual.max_attempts, |most| most.min(usual.max_attempts));
        let random = account.clock.random();
        match (RetryPolicy { max_attempts, ..usual }).decide(error, attempt, now, random) {
            // Fewer tries may fail one call, but not a whole run.
            Decision::Fail(kind) if effort.waits_out_outages && kind.concerns_the_account() => {
                usual.decide(error, attempt, now, random)
            }
            decision => decision,
        }
    }

    /// Waits until Zoom answers. Returns true when there was an outage.
    async fn wait_out(&self, call: &Call) -> Result<bool, Failure> {
        let _waits = Counted::among(self.waiting_out.of(call));
        self.account.outage(call).wait_out(async || self.probe(call).await).await
    }

    /// Asks something else than `call`. An error says why there seems to be an outage.
    async fn probe(&self, call: &Call) -> Result<(), String> {
        let account = &self.account;
        let probe = account.probe_for(call);
        match self.send(&probe, Urgency::Everything, probe.any_answer()).await {
            Ok(()) => Ok(()),
            Err(FailedTry { error, .. }) if account.looks_like_an_outage(call, &error) => {
                Err(error.describe())
            }
            Err(FailedTry { error, generation }) => {
                let now = account.clock.now();
                let decision = account.settings.retry.decide(&error, 1, now, 0.0);
                self.heed(&decision, generation, now);
                Ok(())
            }
        }
    }

    /// Applies what an answer means for all callers: that a limit is reached, or that a new token is needed.
    fn heed(&self, decision: &Decision, generation: Option<u64>, now: Timestamp) {
        match (decision, generation) {
            (Decision::Limited { kind, after }, _) => self.limited(*kind, *after, now),
            (Decision::RenewToken { .. }, Some(generation)) => self.account.tokens.invalidate(generation),
            // The next token will have any scopes added meanwhile; this one may do for other calls.
            (Decision::Fail(FailureKind::MissingScopes), Some(generation)) => {
                self.account.tokens.outdate(generation);
            }
            _ => {}
        }
    }

    pub fn stalled(&self) -> Stalled {
        let retrying = self.backing_off.load(Relaxed);
        let in_flight = self.account.settings.in_flight - self.under_way.available_permits();
        let others = in_flight + self.turns.waiting();
        Stalled { waiting: self.waiting(), retrying: if retrying > others { retrying as u64 } else { 0 } }
    }

    fn waiting(&self) -> Option<Waiting> {
        let outages = self.account.outages.all().into_iter().zip(self.waiting_out.all());
        let mut waited_for = outages.filter(|(_, callers)| callers.load(Relaxed) > 0);
        self.account.budget.waiting().or_else(|| waited_for.find_map(|(outage, _)| outage.waiting()))
    }

    /// The permit must be held until the answer has been processed.
    async fn take_turn(
        &self,
        call: &Call,
        urgency: Urgency,
    ) -> Result<(Token, SemaphorePermit<'_>), RequestError> {
        let rank = match (urgency, &call.page_token) {
            (Urgency::Everything, _) => Rank::Urgent(u32::MAX),
            (Urgency::EndOfJob { calls_to_follow }, _) => Rank::Urgent(calls_to_follow),
            (Urgency::Usual, None) => Rank::First,
            (Urgency::Usual, Some(_)) => Rank::Further,
        };
        let since = self.account.clock.elapsed();
        let _turn = self.turns.turn(rank).await;
        let under_way = self.under_way.acquire().await.expect("the semaphore is never closed");
        // Only now, as a token taken before queueing may have expired since; and before the budget, so that no slot is held
        // during a renewal.
        let token = self.account.tokens.get(since).await?;
        self.account.budget.take().await;
        Ok((token, under_way))
    }

    fn limited(&self, kind: LimitKind, after: Duration, now: Timestamp) {
        let budget = &self.account.budget;
        let (reason, after) = match kind {
            LimitKind::PerSecond if after <= SHORT_WAIT => {
                if !budget.slow_down(after) {
                    return;
                }
                ("Zoom rejects every request with 429 (too many requests)", REFUSED_PAUSE)
            }
            LimitKind::PerSecond => ("Zoom asked for a pause", after),
            LimitKind::Daily => ("Zoom's daily request limit is reached", after),
        };
        let until = now + after;
        // Logged once, however many requests get this answer.
        if budget.pause(Waiting { until, reason: reason.to_owned() }) {
            tracing::warn!(%until, "{reason}, waiting");
        }
    }

    /// Makes one attempt.
    async fn send<T, R>(&self, call: &Call, urgency: Urgency, read: R) -> Result<T, FailedTry>
    where
        T: Send + 'static,
        R: FnOnce(Bytes) -> ReadResult<T> + Send + 'static,
    {
        let without_token = |error| FailedTry { error, generation: None };
        let (token, _under_way) = self.take_turn(call, urgency).await.map_err(without_token)?;
        let with_token = |error| FailedTry { error, generation: Some(token.generation) };
        self.send_with(&token, call, read).await.map_err(with_token)
    }

    async fn send_with<T, R>(&self, token: &Token, call: &Call, read: R) -> Result<T, RequestError>
    where
        T: Send + 'static,
        R: FnOnce(Bytes) -> ReadResult<T> + Send + 'static,
    {
        let account = &*self.account;
        self.traffic.requests.fetch_add(1, Relaxed);
        metrics::counter!("zcr_zoom_requests_total").increment(1);
        let sent = account.clock.elapsed();
        let url = call.url(&account.settings.api_base);
        let no_answer = |error: reqwest::Error| RequestError::NoAnswer(describe(&error));
        let response = account
            .http
            .get(&url)
            .bearer_auth(token.secret.expose_secret())
            .send()
            .await
            .map_err(no_answer)?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        self.note_reported_limit(&headers);
        let bytes = response.content_length().unwrap_or_else(|| self.traffic.mean_answer());
        let arrived = account.clock.elapsed();
        let _room = account.readers.room_for(bytes).await;
        // Time spent waiting for room is not Zoom's latency: more requests in flight would only wait longer.
        let waited = account.clock.elapsed().saturating_sub(arrived);
        let body = if status == 200 {
            collect(response, account.settings.max_answer_bytes).await?
        } else {
            // The status alone is enough if the body cannot be read.
            collect(response, MOST_OF_A_REFUSAL).await.unwrap_or_default()
        };
        self.latency.took(account.clock.elapsed().saturating_sub(sent).saturating_sub(waited));
        self.traffic.bytes.fetch_add(body.len() as u64, Relaxed);
        if status == 429 {
            self.traffic.rate_limited.fetch_add(1, Relaxed);
            metrics::counter!("zcr_zoom_rate_limited_total").increment(1);
        } else {
            account.budget.accepted();
            account.fortunes.note_answer();
        }
        if status != 200 {
            let refusal = Refusal::read(status, &headers, &body, call.page_token.is_some());
            return Err(RequestError::Refused(refusal));
        }
        account.readers.read(body, read).await.map_err(RequestError::Unreadable)
    }

    /// Follows the per-second limit if a response names it: our table may be out of date.
    fn note_reported_limit(&self, headers: &HeaderMap) {
        let limit =
            headers.get("x-ratelimit-limit").and_then(|limit| limit.to_str().ok()?.parse::<f64>().ok());
        let per_second = LimitKind::named_in(headers) == Some(LimitKind::PerSecond);
        if let Some(limit) = limit.filter(|limit| per_second && *limit >= 1.0) {
            self.account.budget.follow_reported_limit(limit * self.account.settings.rate_share);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::auth::Credentials;
    use super::super::client::ZoomSettings;
    use super::*;
    use crate::clock::SystemClock;

    #[tokio::test]
    async fn of_a_limit_that_zoom_names_the_account_takes_its_share() {
        let credentials = Credentials {
            account_id: "a".to_owned(),
            client_id: "c".to_owned(),
            client_secret: "s".to_owned().into(),
        };
        let usual = ZoomSettings::new("http://127.0.0.1/v2".into(), "http://127.0.0.1".into(), credentials);
        let settings = ZoomSettings { limit: Some(30.0), rate_share: 0.5, ..usual };
        let account = Account::new(settings, SystemClock::shared()).unwrap();
        let named = [("x-ratelimit-type", "QPS"), ("x-ratelimit-limit", "20")];
        let headers = named.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        account.lane().note_reported_limit(&headers.into_iter().collect());
        assert_eq!(account.budget().limit(), Some(10.0));
    }
}
