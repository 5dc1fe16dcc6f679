//! Is the account ready? Runs one step after another, each with advice for when it fails.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::ToSpan;
use serde::Serialize;

use crate::clock::SharedClock;
use crate::days::DateRange;
use crate::zoom::auth::Token;
use crate::zoom::error::RequestError;
use crate::zoom::lane::{Effort, Urgency};
use crate::zoom::wire::{MESSAGES, Page, SESSIONS, SessionHead};
use crate::zoom::{Account, Call, Failure, FailureKind, ItemChoice, Lane, Waiting};

/// Zoom's names for the scopes the app needs (vendor's description of both endpoints): either the classic pair or the granular
/// pair.
const CLASSIC: [&str; 2] = ["report_chat:read:admin", "imchat:read:admin"];
const GRANULAR: [&str; 2] = ["report:read:list_chat_sessions:admin", "report:read:chat_session:admin"];
/// Few, as a person is waiting for the check.
const TRIES: u32 = 2;
const EFFORT: Effort = Effort { at_most: Some(TRIES), waits_out_outages: false, urgency: Urgency::Usual };

/// One step of the check.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    pub name: &'static str,
    pub ok: bool,
    pub elapsed_ms: u64,
    pub detail: String,
    /// What to do about it; null when the step is fine.
    pub help: Option<String>,
}

/// Runs the steps in order, passing each to `tell` once it is done, and stops at the first that fails.
pub async fn check(account: &Arc<Account>, clock: &SharedClock, mut tell: impl FnMut(Step)) {
    let today = clock.today();
    let days = DateRange { from: today.saturating_sub(27.days()), to: today };
    tell(fine("settings", Duration::ZERO, account.describe()));
    let checking = Checking { account, clock, lane: account.lane(), days };
    if let Err(failed) = checking.run(&mut tell).await {
        tell(failed);
    }
}

struct Checking<'a> {
    account: &'a Account,
    clock: &'a SharedClock,
    lane: Lane,
    /// The days to try with.
    days: DateRange,
}

impl Checking<'_> {
    async fn run(&self, tell: &mut impl FnMut(Step)) -> Result<(), Step> {
        let (step, token) = self.token().await?;
        tell(step);
        // The next call renews the token, with any scopes granted meanwhile.
        tell(scopes(&token).inspect_err(|_| self.account.tokens().outdate(token.generation))?);
        let (step, session) = self.list().await?;
        tell(step);
        tell(match session {
            Some(id) => self.messages(&id).await?,
            None => fine("messages", Duration::ZERO, "skipped: there was no session in the last four weeks"),
        });
        Ok(())
    }

    async fn token(&self) -> Result<(Step, Token), Step> {
        let (started, tokens) = (self.clock.elapsed(), self.account.tokens());
        let get = || tokens.get(self.clock.elapsed());
        let mut token = get().await;
        if token.as_ref().is_err_and(RequestError::is_no_answer) {
            token = get().await;
        }
        if let Ok(old) = &token
            && !missing_scopes(old).is_empty()
        {
            // The cached token may predate the granting of the scopes.
            tokens.outdate(old.generation);
            token = get().await;
        }
        let elapsed = self.since(started);
        let failure = |error: RequestError| {
            let kind = match error {
                RequestError::NoToken(_) => FailureKind::Credentials,
                _ => FailureKind::Connection,
            };
            failed("token", elapsed, &error.into_failure(kind, TRIES))
        };
        Ok((fine("token", elapsed, "the app has an access token from Zoom"), token.map_err(failure)?))
    }

    /// Also returns the id of the first session listed.
    async fn list(&self) -> Result<(Step, Option<String>), Step> {
        let days = self.days;
        let read = |body: Bytes| {
            let page = Page::read(&body, SESSIONS)?;
            let first = page.arrays[0].first().map(|info| SessionHead::read(info)).transpose()?;
            Ok((page.arrays[0].len(), first.map(|head| head.id)))
        };
        let (elapsed, listed) = self.ask("list", &Call::sessions(days), read).await?;
        let (detail, first) = match listed {
            Some((count, first)) => (format!("{count} sessions on the first page of {days}"), first),
            None => (format!("no session from {days}"), None),
        };
        Ok((fine("list", elapsed, detail), first))
    }

    async fn messages(&self, session_id: &str) -> Result<Step, Step> {
        let call = Call::messages(session_id, self.days, ItemChoice::default());
        let count = |body: Bytes| Ok(Page::read(&body, MESSAGES)?.arrays[0].len());
        let (elapsed, count) = self.ask("messages", &call, count).await?;
        let detail = count.map_or_else(
            || "Zoom has no messages of the first session listed".to_owned(),
            |count| format!("{count} messages on the first page of one session"),
        );
        Ok(fine("messages", elapsed, detail))
    }

    /// Sends the call of a step; `None` if Zoom answers "not found", as it does where there is nothing. Does not wait while the
    /// account is paused: that may last for hours, too long for a check.
    async fn ask<T: Send + 'static>(
        &self,
        name: &'static str,
        call: &Call,
        read: impl Fn(Bytes) -> Result<T, String> + Clone + Send + 'static,
    ) -> Result<(Duration, Option<T>), Step> {
        let (started, budget) = (self.clock.elapsed(), self.account.budget());
        let mut pauses = budget.pauses();
        let paused = |Waiting { until, reason }| Step {
            name,
            ok: false,
            elapsed_ms: self.since(started).as_millis() as u64,
            detail: format!("{reason}; no request is sent before {until}"),
            help: Some("check again after that; jobs wait and then continue by themselves".to_owned()),
        };
        if let Some(waiting) = budget.waiting() {
            return Err(paused(waiting));
        }
        let answer = tokio::select! {
            answer = self.lane.fetch(call, EFFORT, read) => answer,
            Ok(()) = pauses.changed() => {
                let waiting = pauses.borrow_and_update().clone();
                return Err(paused(waiting.expect("a pause is never taken back")));
            }
        };
        let elapsed = self.since(started);
        match answer {
            Ok(answer) => Ok((elapsed, Some(answer))),
            Err(failure) if failure.is_not_found_by_zoom() => Ok((elapsed, None)),
            Err(failure) => Err(failed(name, elapsed, &failure)),
        }
    }

    fn since(&self, started: Duration) -> Duration {
        self.clock.elapsed().saturating_sub(started)
    }
}

fn scopes(token: &Token) -> Result<Step, Step> {
    let missing = missing_scopes(token);
    if missing.is_empty() {
        return Ok(fine("scopes", Duration::ZERO, format!("granted: {}", token.scopes)));
    }
    let detail = format!("the token has: {}; missing: {}", token.scopes, missing.join(", "));
    let help = help_for(FailureKind::MissingScopes).to_owned();
    Err(Step { name: "scopes", ok: false, elapsed_ms: 0, detail, help: Some(help) })
}

/// The scopes that the app still lacks; none if the token names no scopes.
fn missing_scopes(token: &Token) -> Vec<&'static str> {
    let granted: Vec<&str> = token.scopes.split([' ', ',']).filter(|scope| !scope.is_empty()).collect();
    let missing = |wanted: [&'static str; 2]| -> Vec<_> {
        wanted.into_iter().filter(|scope| !granted.contains(scope)).collect()
    };
    let is_short = !granted.is_empty() && !missing(CLASSIC).is_empty();
    if is_short { missing(GRANULAR) } else { Vec::new() }
}

fn fine(name: &'static str, elapsed: Duration, detail: impl Into<String>) -> Step {
    Step { name, ok: true, elapsed_ms: elapsed.as_millis() as u64, detail: detail.into(), help: None }
}

fn failed(name: &'static str, elapsed: Duration, failure: &Failure) -> Step {
    Step {
        name,
        ok: false,
        elapsed_ms: elapsed.as_millis() as u64,
        detail: failure.message.clone(),
        help: Some(help_for(failure.kind).to_owned()),
    }
}

/// What a person can do about a failure.
pub fn help_for(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Credentials => {
            "check ZOOM_ACCOUNT_ID, ZOOM_CLIENT_ID and ZOOM_CLIENT_SECRET against the app's page \"App Credentials\" in \
             the Zoom App Marketplace; the app must be of type Server-to-Server OAuth and activated; ZOOM_OAUTH_BASE_URL, if \
             it is set, must be where Zoom issues tokens"
        }
        FailureKind::MissingScopes => {
            "add the scopes report:read:list_chat_sessions:admin and report:read:chat_session:admin (or the classic pair \
             report_chat:read:admin and imchat:read:admin) to the app and activate it again"
        }
        FailureKind::NoPermission => {
            "the chat reports need a Pro plan or higher, and the app's owner a role that may see reports; if \
             there is no Zoom code, check whether a proxy or a firewall refuses the request"
        }
        FailureKind::UnknownEndpoint => "check ZOOM_API_BASE_URL; it should end in /v2",
        FailureKind::NotFound | FailureKind::Rejected | FailureKind::PageTokenExpired => {
            "Zoom refused the request; check ZOOM_API_BASE_URL and the dates (at most six months back)"
        }
        FailureKind::ServerError
        | FailureKind::UnreadableAnswer
        | FailureKind::AnswerTooLarge
        | FailureKind::DaysLeftOut => {
            "Zoom does not answer as it should; try again later and see status.zoom.us"
        }
        FailureKind::RateLimited => {
            "Zoom keeps answering 429 (too many requests): do other apps use the account? Lower ZOOM_RATE_SHARE"
        }
        FailureKind::Connection => {
            "Zoom could not be reached; check the network, a proxy (HTTPS_PROXY), certificates, and ZOOM_API_BASE_URL \
             and ZOOM_OAUTH_BASE_URL"
        }
        FailureKind::Unreachable => {
            "Zoom, or the network to it, was down; try again when it answers: received data is kept"
        }
        FailureKind::PageTokenLoop | FailureKind::EndlessPages => {
            "Zoom's paging is at fault; try again later"
        }
        FailureKind::OutOfReach => "these days can no longer be retrieved; start jobs earlier next time",
    }
}
