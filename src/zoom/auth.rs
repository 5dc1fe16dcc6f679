//! The access token: cached, renewed before it expires, requested by one caller on behalf of all.
//!
//! Owns the credentials. One request serves all callers waiting for a token, and after a failure there is at most one a second;
//! retrying is left to the caller, as with any other request. A token has a generation, so that many requests refused with the
//! same old token lead to one new token and not to one each (asking for a second token can invalidate the first).

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::error::{Refusal, RequestError};
use super::transport::collect;
use crate::clock::SharedClock;
use crate::sync::lock;

/// A token is renewed this long before it expires, or at nine tenths of its life if that is later.
const RENEW_EARLY: Duration = Duration::from_secs(120);

/// The pause between a failed request for a token and the next.
const PAUSE: Duration = Duration::from_secs(1);
/// When renewing a token early has failed, it is tried again after this long.
const RENEW_AGAIN: Duration = Duration::from_secs(5);
/// The longest a token is trusted, whatever `expires_in` says; Zoom's last for an hour.
const LONGEST_LIFE: Duration = Duration::from_secs(86_400);
/// No token response is larger than this.
const MOST_BYTES: usize = 64 << 10;

/// Server-to-server OAuth credentials of one account.
#[derive(Clone)]
pub struct Credentials {
    pub account_id: String,
    pub client_id: String,
    pub client_secret: SecretString,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credentials([redacted])")
    }
}

/// A token as handed to a request.
#[derive(Debug, Clone)]
pub struct Token {
    pub secret: Arc<SecretString>,
    /// The scopes Zoom granted, as it names them.
    pub scopes: Arc<str>,
    pub generation: u64,
}

#[derive(Debug)]
struct Cached {
    token: Token,
    renew_at: Duration,
    expires_at: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// The last token granted, whether still usable or not.
    cached: Option<Cached>,
    /// When and why the last request for a token failed, if it did.
    failed: Option<(Duration, RequestError)>,
}

#[derive(Debug)]
pub struct Tokens {
    http: reqwest::Client,
    url: String,
    credentials: Credentials,
    clock: SharedClock,
    state: Mutex<State>,
    /// One renewal at a time: whoever holds the permit asks, the others find the result.
    renewal: tokio::sync::Semaphore,
}

#[derive(Deserialize)]
struct TokenBody {
    access_token: SecretString,
    expires_in: Option<u64>,
    #[serde(default)]
    scope: String,
}

impl Tokens {
    pub fn new(
        http: reqwest::Client,
        oauth_base: &str,
        credentials: Credentials,
        clock: SharedClock,
    ) -> Self {
        Self {
            http,
            url: format!("{}/oauth/token", oauth_base.trim_end_matches('/')),
            credentials,
            clock,
            state: Mutex::default(),
            renewal: tokio::sync::Semaphore::new(1),
        }
    }

    /// Returns the current token or a new one. If another caller asked for one in vain while this one waited: the old one until
    /// it expires, else that caller's error.
    pub async fn get(&self, waits_since: Duration) -> Result<Token, RequestError> {
        let fresh = || self.cached_before(|cached| cached.renew_at);
        if let Some(token) = fresh() {
            return Ok(token);
        }
        let _permit = self.renewal.acquire().await.expect("the semaphore is never closed");
        if let Some(token) = fresh() {
            return Ok(token);
        }
        if let Some((failed_at, error)) = self.with(|state| state.failed.clone()) {
            let pause = (failed_at + PAUSE).saturating_sub(self.clock.elapsed());
            if failed_at > waits_since && !pause.is_zero() {
                // The cached token may have been outdated again since.
                return self.cached_before(|cached| cached.expires_at).ok_or(error);
            }
            self.clock.sleep(pause).await;
        }
        let asked_at = self.clock.elapsed();
        match self.request_token().await {
            Ok(body) => Ok(self.store(body, asked_at)),
            Err(error) => self.use_cached(error),
        }
    }

    /// Discards the token of this generation: it is not handed out again.
    pub fn invalidate(&self, generation: u64) {
        self.with_cached(generation, |cached| {
            (cached.renew_at, cached.expires_at) = (Duration::ZERO, Duration::ZERO);
        });
    }

    /// Has the token of this generation renewed before it is handed out again; it stays in use if that fails.
    pub fn outdate(&self, generation: u64) {
        self.with_cached(generation, |cached| cached.renew_at = Duration::ZERO);
    }

    /// Changes the cached token if it is still of this generation.
    fn with_cached(&self, generation: u64, change: impl FnOnce(&mut Cached)) {
        self.with(|state| {
            let cached = state.cached.as_mut().filter(|cached| cached.token.generation == generation);
            cached.map(change);
        });
    }

    /// The cached token until this time of it.
    fn cached_before(&self, end: impl Fn(&Cached) -> Duration) -> Option<Token> {
        self.with(|state| {
            let cached = state.cached.as_ref().filter(|cached| self.clock.elapsed() < end(cached));
            cached.map(|cached| cached.token.clone())
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut lock(&self.state))
    }

    async fn request_token(&self) -> Result<TokenBody, RequestError> {
        let form =
            [("grant_type", "account_credentials"), ("account_id", self.credentials.account_id.as_str())];
        let response = self
            .http
            .post(&self.url)
            .basic_auth(&self.credentials.client_id, Some(self.credentials.client_secret.expose_secret()))
            .form(&form)
            .send()
            .await
            .map_err(|error| RequestError::NoAnswer(super::transport::describe(&error)))?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = collect(response, MOST_BYTES).await;
        if status != 200 {
            // The status alone is enough if the body cannot be read.
            let refusal = Refusal::read(status, &headers, &body.unwrap_or_default(), false);
            return Err(RequestError::Refused(refusal));
        }
        // The body holds the token: a parse error must not quote it.
        let not_a_token = || RequestError::Unreadable("not a token answer".to_owned());
        let body =
            body.map_err(|error| if error == RequestError::TooLarge { not_a_token() } else { error })?;
        serde_json::from_slice(&body).map_err(|_| not_a_token())
    }

    fn store(&self, body: TokenBody, asked_at: Duration) -> Token {
        let life = Duration::from_secs(body.expires_in.unwrap_or(3_600)).min(LONGEST_LIFE);
        let renew_at = asked_at + life.saturating_sub(RENEW_EARLY).max(life.mul_f64(0.9));
        let (secret, scopes) = (Arc::new(body.access_token), Arc::from(body.scope.as_str()));
        let token = self.with(|state| {
            let generation = state.cached.as_ref().map_or(1, |old| old.token.generation + 1);
            let token = Token { secret, scopes, generation };
            let cached = Cached { token: token.clone(), renew_at, expires_at: asked_at + life };
            *state = State { cached: Some(cached), failed: None };
            token
        });
        tracing::info!(generation = token.generation, valid_for_s = life.as_secs(), "got an access token");
        token
    }

    /// Falls back to the cached token until it expires: even a refusal of the credentials may be over in a moment.
    fn use_cached(&self, error: RequestError) -> Result<Token, RequestError> {
        let now = self.clock.elapsed();
        self.with(|state| {
            let error = classify_token_failure(error, state.cached.is_some());
            state.failed = Some((now, error.clone()));
            match &mut state.cached {
                Some(cached) if now < cached.expires_at => {
                    tracing::warn!(error = error.describe(), "the access token could not be renewed early");
                    cached.renew_at = (now + RENEW_AGAIN).min(cached.expires_at);
                    Ok(cached.token.clone())
                }
                _ => Err(error),
            }
        })
    }
}

/// A refusal that would blame the request at the API blames the credentials here. Without a message it is put down to an
/// intermediary if a token was granted before; else perhaps to a wrong ZOOM_OAUTH_BASE_URL, so the account decides whether to
/// wait ([`super::Account::looks_like_an_outage`]).
fn classify_token_failure(error: RequestError, was_given_one: bool) -> RequestError {
    let is_of_credentials = |refusal: &Refusal| match refusal.status {
        // A 429 here says nothing about the pace of report requests: it is waited out like a busy server.
        408 | 425 | 429 | 500.. => false,
        400..500 if !refusal.message.is_empty() => true,
        // From a proxy or a firewall.
        403 | 407 => false,
        300..500 => !was_given_one,
        _ => false,
    };
    match error {
        RequestError::Refused(refusal) if is_of_credentials(&refusal) => RequestError::NoToken(refusal),
        other => RequestError::NoAnswer(format!("could not get an access token: {}", other.describe())),
    }
}
