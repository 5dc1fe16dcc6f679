//! The retry policy: a pure function from what happened to what to do next.
//!
//! Owns the classification of every answer Zoom may give, and how tries are counted. Never sleeps, knows no HTTP client.
//! Exponential backoff with full jitter ("Exponential Backoff And Jitter", AWS architecture blog), with what the answer itself
//! asks for as a lower bound.

use std::time::Duration;

use jiff::Timestamp;

use super::error::{FailureKind, LimitKind, Refusal, RequestError};

/// How often and how slowly to retry.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Tries in all, the first one included.
    pub max_attempts: u32,
    /// The ceiling of the first delay; it doubles with each attempt.
    pub base: Duration,
    /// The longest delay, unless the answer asks for more; then up to five minutes.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 8, base: Duration::from_millis(500), cap: Duration::from_secs(30) }
    }
}

/// Credentials refused this many times are wrong.
const TRIES_FOR_A_TOKEN: u32 = 3;
/// The shortest pause at a daily limit, even if by our clock the instant named has passed: clocks differ.
const LEAST_PAUSE: Duration = Duration::from_secs(60);
/// A limit is tested again after a little more than a day, whatever instant was named.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(25 * 3_600);
/// The longest wait after a server error, whatever the answer asks for: users are not shown that a single chain waits.
const LONGEST_DELAY: Duration = Duration::from_secs(5 * 60);

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Retry after a delay; this try counts against the maximum.
    Retry {
        after: Duration,
    },
    /// The account is at a limit: slow down, or wait for as long as given; costs no attempt.
    Limited {
        kind: LimitKind,
        after: Duration,
    },
    /// Get a new token, then retry: at once, or with a delay if that has not helped before.
    RenewToken {
        after: Duration,
    },
    Fail(FailureKind),
}

impl RetryPolicy {
    /// Decides what to do next. `attempt` is the number of the try, as [`Tries`] counts; `random` is a number in `[0, 1)`.
    pub fn decide(&self, error: &RequestError, attempt: u32, now: Timestamp, random: f64) -> Decision {
        let backoff = self.backoff(attempt, random);
        let again_or = |kind: FailureKind, at_least: Duration| {
            if attempt >= self.max_attempts {
                Decision::Fail(kind)
            } else {
                Decision::Retry { after: backoff.max(at_least) }
            }
        };
        match error {
            RequestError::NoAnswer(_) => again_or(FailureKind::Connection, Duration::ZERO),
            RequestError::Unreadable(_) => again_or(FailureKind::UnreadableAnswer, Duration::ZERO),
            RequestError::TooLarge => Decision::Fail(FailureKind::AnswerTooLarge),
            RequestError::NoToken(_) if attempt >= TRIES_FOR_A_TOKEN => {
                Decision::Fail(FailureKind::Credentials)
            }
            RequestError::NoToken(_) => again_or(FailureKind::Credentials, Duration::ZERO),
            RequestError::Refused(refusal) => {
                let asked = refusal.retry_after.map_or(Duration::ZERO, |retry| retry.after(now));
                match refusal.class() {
                    Class::Limited => Decision::Limited {
                        kind: refusal.limit,
                        after: match (refusal.limit, &refusal.retry_after) {
                            (LimitKind::PerSecond, _) => asked,
                            (LimitKind::Daily, None) => until_midnight(now) + LEAST_PAUSE,
                            (LimitKind::Daily, Some(_)) => asked.max(LEAST_PAUSE),
                        }
                        .min(LONGEST_PAUSE),
                    },
                    // The first 401 is nearly always an expired or superseded token; a token that is refused again
                    // is given time (observed: a short-lived 401 on a token that is still valid).
                    Class::Token if attempt >= self.max_attempts => Decision::Fail(FailureKind::Credentials),
                    Class::Token => {
                        Decision::RenewToken { after: if attempt == 1 { Duration::ZERO } else { backoff } }
                    }
                    Class::Transient(kind) => again_or(kind, asked.min(LONGEST_DELAY)),
                    Class::Permanent(kind) => Decision::Fail(kind),
                }
            }
        }
    }

    /// The delay before the try after `attempt`: a random share of `base * 2^(attempt-1)`, at most `cap`.
    pub(super) fn backoff(&self, attempt: u32, random: f64) -> Duration {
        let ceiling = self.base.saturating_mul(1 << attempt.saturating_sub(1).min(20)).min(self.cap);
        ceiling.mul_f64(random.clamp(0.0, 1.0))
    }
}

/// Counts failed tries. Refused tokens and refusals to grant one are counted separately, and anew after a failure of another
/// kind, except a 429: a server error followed by one of them says nothing about the credentials.
#[derive(Debug, Default)]
pub struct Tries {
    tokens_refused: u32,
    grants_refused: u32,
    others: u32,
}

impl Tries {
    /// Counts one more try, and returns its number among those of its kind.
    pub fn count(&mut self, error: &RequestError) -> u32 {
        let class = match error {
            RequestError::NoToken(_) => {
                self.grants_refused += 1;
                return self.grants_refused;
            }
            RequestError::Refused(refusal) => Some(refusal.class()),
            _ => None,
        };
        match class {
            // Not counted: there is nothing wrong with the request.
            Some(Class::Limited) => self.others + 1,
            Some(Class::Token) => {
                (self.tokens_refused, self.grants_refused) = (self.tokens_refused + 1, 0);
                self.tokens_refused
            }
            _ => {
                *self = Self { others: self.others + 1, ..Self::default() };
                self.others
            }
        }
    }
}

impl RequestError {
    /// True if nothing usable came, or a server error: perhaps nobody is answered.
    pub fn is_no_answer(&self) -> bool {
        match self {
            Self::NoAnswer(_) | Self::Unreadable(_) => true,
            Self::Refused(refusal) => (500..=599).contains(&refusal.status),
            Self::TooLarge | Self::NoToken(_) => false,
        }
    }

    /// True if this looks like a gateway's refusal, not one by Zoom itself.
    pub fn came_from_gateway(&self) -> bool {
        match self {
            Self::Refused(refusal) => {
                refusal.zoom_code.is_none() && matches!(refusal.class(), Class::Transient(_))
            }
            // Zoom says what is wrong with credentials.
            Self::NoToken(refusal) => refusal.message.is_empty(),
            _ => false,
        }
    }
}

enum Class {
    Limited,
    Token,
    Transient(FailureKind),
    Permanent(FailureKind),
}

impl Refusal {
    /// The one table of what answers mean (error codes of the report endpoints, and variants observed by users).
    fn class(&self) -> Class {
        match (self.status, self.zoom_code) {
            (429, _) => Class::Limited,
            // Code 124 is "invalid or expired access token", observed with 400 as well as 401.
            (401, _) | (400, Some(124)) => Class::Token,
            // 300 is about the page token only when one was sent; otherwise our parameters are wrong for good.
            (400, Some(300)) if self.page_token_sent => Class::Permanent(FailureKind::PageTokenExpired),
            (400 | 403, Some(104 | 4700 | 4711)) => Class::Permanent(FailureKind::MissingScopes),
            (400 | 403, Some(200)) => Class::Permanent(FailureKind::NoPermission),
            // Observed when the path is wrong (zoom/rivet-javascript, issue 12): it says nothing about what was asked for.
            (404, Some(2300)) => Class::Permanent(FailureKind::UnknownEndpoint),
            (404, Some(_)) => Class::Permanent(FailureKind::NotFound),
            (408 | 425 | 500..=599, _) => Class::Transient(FailureKind::ServerError),
            // Without one of Zoom's codes these come from a proxy or firewall and are often gone in a moment.
            (403, None) => Class::Transient(FailureKind::NoPermission),
            (404, None) => Class::Transient(FailureKind::NotFound),
            // Includes redirects, which are not followed on API calls, and any 2xx other than 200.
            (_, None) => Class::Transient(FailureKind::Rejected),
            _ => Class::Permanent(FailureKind::Rejected),
        }
    }
}

/// Zoom's day ends at 00:00 UTC; the fallback for a daily limit that names no instant.
fn until_midnight(now: Timestamp) -> Duration {
    let passed = now.as_second().rem_euclid(86_400);
    Duration::from_secs((86_400 - passed) as u64)
}

#[cfg(test)]
mod tests {
    use super::super::error::RetryAfter;
    use super::*;
    use proptest::prelude::*;
    use std::fmt::Write as _;

    fn refusal(status: u16, zoom_code: Option<i64>, page_token_sent: bool) -> RequestError {
        RequestError::Refused(Refusal {
            status,
            zoom_code,
            message: String::new(),
            retry_after: None,
            limit: LimitKind::PerSecond,
            is_html: false,
            page_token_sent,
        })
    }

    fn now() -> Timestamp {
        "2026-05-30T18:00:00Z".parse().unwrap()
    }

    #[test]
    fn every_status_and_code_has_its_place() {
        let policy = RetryPolicy::default();
        let mut table = String::new();
        let codes = [None, Some(104), Some(124), Some(200), Some(300), Some(2300), Some(4700), Some(4711)];
        for code in codes {
            for page_token_sent in [false, true] {
                let mut previous = String::new();
                for status in (100..600).chain([999]).filter(|status| *status != 200) {
                    let error = refusal(status, code, page_token_sent);
                    let first = policy.decide(&error, 1, now(), 0.5);
                    let last = policy.decide(&error, 8, now(), 0.5);
                    let line = format!("first {first:?}, last {last:?}");
                    if line != previous {
                        writeln!(table, "code {code:?} token {page_token_sent} from {status}: {line}")
                            .unwrap();
                        previous = line;
                    }
                }
            }
        }
        for error in [
            RequestError::NoAnswer(String::new()),
            RequestError::Unreadable(String::new()),
            RequestError::TooLarge,
        ] {
            let first = policy.decide(&error, 1, now(), 0.5);
            let last = policy.decide(&error, 8, now(), 0.5);
            writeln!(table, "{error:?}: first {first:?}, last {last:?}").unwrap();
        }
        insta::assert_snapshot!("retry_table", table);
    }

    #[test]
    fn a_daily_limit_waits_until_the_instant_named_or_midnight() {
        let policy = RetryPolicy::default();
        let daily = |retry_after| {
            RequestError::Refused(Refusal {
                status: 429,
                zoom_code: Some(429),
                message: String::new(),
                retry_after,
                limit: LimitKind::Daily,
                is_html: false,
                page_token_sent: false,
            })
        };
        let named = RetryAfter::At("2026-05-31T03:00:00Z".parse().unwrap());
        let wait = |error| match policy.decide(&error, 99, now(), 0.0) {
            Decision::Limited { kind: LimitKind::Daily, after } => after.as_secs(),
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(daily(Some(named))), 9 * 3600);
        assert_eq!(wait(daily(Some(RetryAfter::At(now())))), 60, "it has passed, by our clock");
        assert_eq!(wait(daily(None)), 6 * 3600 + 60, "our clock may be ahead");
        let far = RetryAfter::At("2026-06-02T00:00:00Z".parse().unwrap());
        assert_eq!(wait(daily(Some(far))), 25 * 3600, "whatever instant is named");
    }

    proptest! {
        #[test]
        fn delays_never_exceed_the_cap_and_attempts_always_end(
            status in 100u16..=999, code in proptest::option::of(-10i64..5000), sent: bool, attempt in 1u32..200, roll in 0.0f64..1.0,
        ) {
            let policy = RetryPolicy::default();
            let error = refusal(status, code, sent);
            match policy.decide(&error, attempt, now(), roll) {
                Decision::Retry { after } => {
                    prop_assert!(after <= policy.cap && attempt < policy.max_attempts);
                }
                Decision::RenewToken { after } => prop_assert!(after <= policy.cap && attempt < policy.max_attempts),
                Decision::Fail(FailureKind::PageTokenExpired) => prop_assert!(sent && code == Some(300)),
                Decision::Limited { .. } => prop_assert_eq!(status, 429),
                Decision::Fail(_) => {}
            }
        }

        #[test]
        fn what_the_answer_asks_for_is_a_lower_bound_up_to_some_minutes(seconds in 0u64..10_000, roll in 0.0f64..1.0) {
            let error = RequestError::Refused(Refusal {
                status: 503, zoom_code: None, message: String::new(),
                retry_after: Some(RetryAfter::In(Duration::from_secs(seconds))),
                is_html: false,
                limit: LimitKind::PerSecond, page_token_sent: false,
            });
            let Decision::Retry { after } = RetryPolicy::default().decide(&error, 1, now(), roll) else {
                panic!("a 503 is repeated");
            };
            prop_assert!(after >= Duration::from_secs(seconds).min(LONGEST_DELAY));
        }
    }
}
