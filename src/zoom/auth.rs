//! The access token: cached, renewed before it expires, asked for by one caller on behalf of all.
//!
//! Owns the credentials. Asks once for each caller that needs a token; repeating is the caller's affair, as with any
//! other request. A token has a generation, so that many requests refused with the same old token lead to one
//! new token and not to one each (asking for a second token can invalidate the first).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::outcome::{Outcome, Refusal};
use super::transport::collect;
use crate::clock::SharedClock;

/// A token is renewed this long before it ends, or at nine tenths of its life if that is later.
const RENEW_EARLY: Duration = Duration::from_secs(120);

/// The longest a token is trusted, whatever `expires_in` says; Zoom's last for an hour.
const LONGEST_LIFE: Duration = Duration::from_secs(86_400);
/// A larger answer holds no token.
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
}

#[derive(Debug)]
pub struct Tokens {
    http: reqwest::Client,
    url: String,
    credentials: Credentials,
    clock: SharedClock,
    cached: Mutex<Option<Cached>>,
    /// One renewal at a time: whoever holds it asks, the others find its answer.
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
            cached: Mutex::new(None),
            renewal: tokio::sync::Semaphore::new(1),
        }
    }

    /// The current token, or a new one.
    pub async fn get(&self) -> Result<Token, Outcome> {
        if let Some(token) = self.current() {
            return Ok(token);
        }
        let _permit = self.renewal.acquire().await.expect("the semaphore is never closed");
        if let Some(token) = self.current() {
            return Ok(token);
        }
        let asked_at = self.clock.elapsed();
        let body = self.ask().await.map_err(of_the_token_endpoint)?;
        Ok(self.keep(body, asked_at))
    }

    /// A token of this generation is of no use any more: it is not handed out again.
    pub fn give_up(&self, generation: u64) {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = cached.as_mut().filter(|cached| cached.token.generation == generation) {
            cached.renew_at = Duration::ZERO;
        }
    }

    fn current(&self) -> Option<Token> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached
            .as_ref()
            .filter(|cached| self.clock.elapsed() < cached.renew_at)
            .map(|cached| cached.token.clone())
    }

    async fn ask(&self) -> Result<TokenBody, Outcome> {
        let form =
            [("grant_type", "account_credentials"), ("account_id", self.credentials.account_id.as_str())];
        let response = self
            .http
            .post(&self.url)
            .basic_auth(&self.credentials.client_id, Some(self.credentials.client_secret.expose_secret()))
            .form(&form)
            .send()
            .await
            .map_err(|error| Outcome::NoAnswer(super::transport::describe(&error)))?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = collect(response, MOST_BYTES).await?;
        if status != 200 {
            return Err(Outcome::Refused(Refusal::read(status, &headers, &body, false)));
        }
        // The body holds the token: a parse error must not quote it.
        serde_json::from_slice(&body).map_err(|_| Outcome::Unreadable("not a token answer".to_owned()))
    }

    fn keep(&self, body: TokenBody, asked_at: Duration) -> Token {
        let life = Duration::from_secs(body.expires_in.unwrap_or(3_600)).min(LONGEST_LIFE);
        let renew_at = asked_at + life.saturating_sub(RENEW_EARLY).max(life.mul_f64(0.9));
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = cached.as_ref().map_or(1, |old| old.token.generation + 1);
        let token =
            Token { secret: Arc::new(body.access_token), scopes: Arc::from(body.scope.as_str()), generation };
        *cached = Some(Cached { token: token.clone(), renew_at });
        tracing::info!(generation, valid_for_s = life.as_secs(), "got an access token");
        token
    }
}

/// The token endpoint speaks of credentials where the API would speak of requests.
fn of_the_token_endpoint(outcome: Outcome) -> Outcome {
    // A 429 here says nothing about the pace of reports: it is waited out like a server that is busy. So is a 403 or 407 that
    // says nothing: it is a proxy's or a firewall's page, not Zoom's word about the credentials. Any other such refusal may be
    // of a wrong ZOOM_OAUTH_BASE_URL, which is told at once.
    let is_of_credentials = |refusal: &Refusal| match refusal.status {
        408 | 425 | 429 => false,
        403 | 407 => !refusal.message.is_empty(),
        status => (400..500).contains(&status),
    };
    match outcome {
        Outcome::Refused(refusal) if is_of_credentials(&refusal) => Outcome::NoToken(refusal),
        other => Outcome::NoAnswer(format!("could not get an access token: {}", other.describe())),
    }
}
