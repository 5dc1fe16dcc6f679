//! One job's way to Zoom: its callers queue, take the account's turns, and ask until they are answered.
//!
//! Owns the loop of turn, token, budget, send, classify, repeat. How much should be under way is told in `load`. Does not
//! interpret pages: the caller passes a reader, and an answer the reader refuses counts as unreadable.

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
use super::call::{Call, OfEndpoints};
use super::client::Account;
use super::line::{Line, Rank};
use super::load::Latency;
use super::outcome::{Failure, FailureKind, LimitKind, Outcome, Refusal};
use super::readers::ReadResult;
use super::retry::{Decision, RetryPolicy, Tries};
use super::transport::{collect, describe};

/// How hard to try.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Tries, the first included, if fewer than usual.
    pub at_most: Option<u32>,
    /// Wait for the end of an outage. A person who waits for an answer would rather know.
    pub sits_out_outages: bool,
    /// `Some(n)`: the job cannot end before this call and about `n` more that must follow it, one by one. More of the turns are
    /// for such calls, and for those with the largest `n` first.
    pub urgent: Option<u32>,
}

impl Effort {
    /// Everything else waits for this call.
    pub const MOST_URGENT: Option<u32> = Some(u32::MAX);
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
    /// How many bytes an answer has, on average.
    pub(super) fn mean_answer(&self) -> u64 {
        (self.bytes.load(Relaxed) / self.requests.load(Relaxed).max(1)).max(1)
    }
}

/// What a call ended with when it did not end with an answer.
#[derive(Debug)]
pub enum Ended {
    /// The page token is no longer good. The caller may begin the chain again; if it will not, this is why it failed.
    Restart(Failure),
    Failed(Failure),
}

impl Ended {
    pub fn is_not_found_by_zoom(&self) -> bool {
        matches!(self, Self::Failed(failure) if failure.is_not_found_by_zoom())
    }
}

/// A try that was not answered well, and which token it was made with.
struct Tried {
    outcome: Outcome,
    generation: Option<u64>,
}

/// One of those that this counter counts.
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

/// One job's way to Zoom. Its callers queue here first, so that jobs take turns at the account's budget, and hold no
/// more answers at the same time than they may.
#[derive(Debug)]
pub struct Lane {
    pub(super) account: Arc<Account>,
    pub(super) line: Arc<Line>,
    under_way: Semaphore,
    pub traffic: Traffic,
    pub(super) latency: Latency,
    /// Callers that wait until an endpoint answers again.
    sitting_out: OfEndpoints<AtomicUsize>,
}

/// A longer wait after a 429 is a pause: people are told of it, and it outlives the process.
const SHORT_WAIT: Duration = Duration::from_secs(10);
/// How long to pause when Zoom refuses every request and names no time.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// More of a refusal is not read.
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
            line: Arc::default(),
            under_way: Semaphore::new(account.settings.in_flight),
            account,
            traffic: Traffic::default(),
            latency: Latency::default(),
            sitting_out: OfEndpoints::default(),
        }
    }

    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Sends `call` until it is answered or has failed for good; `read` of a large body runs on one of the threads for that.
    pub async fn fetch<T, R>(&self, call: &Call, effort: Effort, read: R) -> Result<T, Ended>
    where
        T: Send + 'static,
        R: Fn(Bytes) -> ReadResult<T> + Clone + Send + 'static,
    {
        let account = &*self.account;
        let usual = account.settings.retry;
        let max_attempts = effort.at_most.map_or(usual.max_attempts, |most| most.min(usual.max_attempts));
        let policy = RetryPolicy { max_attempts, ..usual };
        let mut tries = Tries::default();
        let outage = account.outage(call);
        let mut sent = outage.mark();
        loop {
            if effort.sits_out_outages && outage.is_on() {
                self.sit_out(call).await.map_err(Ended::Failed)?;
            }
            let before = std::mem::replace(&mut sent, outage.mark());
            if sent.saw_outage_since(before) {
                tries = Tries::default();
            }
            let Tried { outcome, generation } = match self.send(call, effort.urgent, read.clone()).await {
                Ok(answer) => {
                    account.note_answer(call);
                    return Ok(answer);
                }
                Err(tried) => tried,
            };
            let attempt = tries.count(&outcome);
            let (now, roll) = (account.clock.now(), account.clock.roll());
            let mut decision = policy.decide(&outcome, attempt, now, roll);
            if effort.sits_out_outages
                && matches!(decision, Decision::Fail(kind) if kind.concerns_the_account())
            {
                // Fewer tries may fail one call, but not a whole run.
                decision = usual.decide(&outcome, attempt, now, roll);
            }
            tracing::debug!(attempt, what = outcome.describe(), ?decision, "a request was not answered well");
            if !account.looks_like_an_outage(call, &outcome) {
                outage.answered();
            } else if effort.sits_out_outages
                && outage.failed(call.subject(), matches!(decision, Decision::Fail(_)), sent)
                && self.sit_out(call).await.map_err(Ended::Failed)?
            {
                continue;
            }
            self.heed(&decision, generation, now);
            match decision {
                Decision::Fail(kind) => return Err(Ended::Failed(outcome.into_failure(kind, attempt))),
                Decision::Restart => {
                    return Err(Ended::Restart(outcome.into_failure(FailureKind::Rejected, attempt)));
                }
                Decision::Limited { .. } => {}
                Decision::Renew { after } | Decision::Again { after } => {
                    // Without a token nothing was sent.
                    self.traffic.retries.fetch_add(u64::from(generation.is_some()), Relaxed);
                    account.clock.sleep(after).await;
                }
            }
        }
    }

    /// Waits until Zoom answers. True when there was an outage.
    async fn sit_out(&self, call: &Call) -> Result<bool, Failure> {
        let account = &self.account;
        let _waits = Counted::among(self.sitting_out.of(call.endpoint()));
        account
            .outage(call)
            .sit_out(async || {
                let probe = account.probe_for(call);
                match self.send(&probe, Effort::MOST_URGENT, probe.any_answer()).await {
                    Ok(()) => Ok(()),
                    Err(Tried { outcome, .. }) if account.looks_like_an_outage(call, &outcome) => {
                        Err(outcome.describe())
                    }
                    Err(Tried { outcome, generation }) => {
                        let now = account.clock.now();
                        self.heed(&account.settings.retry.decide(&outcome, 1, now, 0.0), generation, now);
                        Ok(())
                    }
                }
            })
            .await
    }

    /// What an answer says to everybody, whoever asked: that there is a limit, or that the token is of no use.
    fn heed(&self, decision: &Decision, generation: Option<u64>, now: Timestamp) {
        match (decision, generation) {
            (Decision::Limited { kind, after }, _) => self.limited(*kind, *after, now),
            // The next token will have scopes that are added meanwhile.
            (Decision::Renew { .. } | Decision::Fail(FailureKind::MissingScopes), Some(generation)) => {
                self.account.tokens.give_up(generation);
            }
            _ => {}
        }
    }

    /// Why this job asks nothing at the moment, or some of its callers do not, if so.
    pub fn waiting(&self) -> Option<Waiting> {
        let outages = self.account.outages.all().into_iter().zip(self.sitting_out.all());
        let mut waited_for = outages.filter(|(_, callers)| callers.load(Relaxed) > 0);
        self.account.budget.waiting().or_else(|| waited_for.find_map(|(outage, _)| outage.waiting()))
    }

    /// The permit is to be held until the answer is dealt with.
    async fn take_turn(
        &self,
        call: &Call,
        urgent: Option<u32>,
    ) -> Result<(Token, SemaphorePermit<'_>), Outcome> {
        let rank = match (urgent, call.page_token()) {
            (Some(further), _) => Rank::Urgent(further),
            (None, None) => Rank::First,
            (None, Some(_)) => Rank::Further,
        };
        let since = self.account.clock.elapsed();
        let _turn = self.line.turn(rank).await;
        let under_way = self.under_way.acquire().await.expect("the semaphore is never closed");
        // Only now, as one taken before queueing may have ended since; and before the budget, so that a renewal holds no slot.
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
                ("Zoom refuses every request as one too many", REFUSED_PAUSE)
            }
            LimitKind::PerSecond => ("Zoom asked for a pause", after),
            LimitKind::Daily => ("Zoom's daily request limit is reached", after),
        };
        let until = now + after;
        tracing::warn!(%until, "{reason}, waiting");
        budget.pause(Waiting { until, reason: reason.to_owned() });
    }

    /// One try.
    async fn send<T, R>(&self, call: &Call, urgent: Option<u32>, read: R) -> Result<T, Tried>
    where
        T: Send + 'static,
        R: FnOnce(Bytes) -> ReadResult<T> + Send + 'static,
    {
        let without_token = |outcome| Tried { outcome, generation: None };
        let (token, _under_way) = self.take_turn(call, urgent).await.map_err(without_token)?;
        let with_token = |outcome| Tried { outcome, generation: Some(token.generation) };
        self.send_with(&token, call, read).await.map_err(with_token)
    }

    async fn send_with<T, R>(&self, token: &Token, call: &Call, read: R) -> Result<T, Outcome>
    where
        T: Send + 'static,
        R: FnOnce(Bytes) -> ReadResult<T> + Send + 'static,
    {
        let account = &*self.account;
        self.traffic.requests.fetch_add(1, Relaxed);
        metrics::counter!("zcr_zoom_requests_total").increment(1);
        let sent = account.clock.elapsed();
        let url = call.url(&account.settings.api_base);
        let no_answer = |error: reqwest::Error| Outcome::NoAnswer(describe(&error));
        let response = account
            .http
            .get(&url)
            .bearer_auth(token.secret.expose_secret())
            .send()
            .await
            .map_err(no_answer)?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        self.believe_limit(&headers);
        let bytes = response.content_length().unwrap_or_else(|| self.traffic.mean_answer());
        let _room = account.readers.room_for(bytes).await;
        let body = if status == 200 {
            collect(response, account.settings.max_answer_bytes).await?
        } else {
            // What the status says holds without it as well.
            collect(response, MOST_OF_A_REFUSAL).await.unwrap_or_default()
        };
        self.latency.took(account.clock.elapsed().saturating_sub(sent));
        self.traffic.bytes.fetch_add(body.len() as u64, Relaxed);
        if status == 429 {
            self.traffic.rate_limited.fetch_add(1, Relaxed);
            metrics::counter!("zcr_zoom_rate_limited_total").increment(1);
        } else {
            account.budget.accepted();
        }
        if status != 200 {
            let refusal = Refusal::read(status, &headers, &body, call.page_token().is_some());
            return Err(Outcome::Refused(refusal));
        }
        account.readers.read(body, read).await.map_err(Outcome::Unreadable)
    }

    /// Where a response names its per-second limit, the response is right and our table is old.
    fn believe_limit(&self, headers: &HeaderMap) {
        let limit =
            headers.get("x-ratelimit-limit").and_then(|limit| limit.to_str().ok()?.parse::<f64>().ok());
        let per_second = LimitKind::named_in(headers) == Some(LimitKind::PerSecond);
        if let Some(limit) = limit.filter(|limit| per_second && *limit >= 1.0) {
            self.account.budget.believe(limit * self.account.settings.rate_share);
        }
    }
}
