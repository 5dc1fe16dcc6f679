//! The three endpoints: what they accept, what they refuse, what they answer.
//!
//! The rules follow Zoom's API description and observed behaviour; random and scripted faults come from `faults`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Method, Response, Uri, header};
use futures_util::stream;
use jiff::ToSpan;
use jiff::civil::Date;

use super::SimStats;
use super::answers::{error, json_body, no_such_session, oauth_error, raw, too_many};
use super::calendar::{self, DAY_MS};
use super::dataset::Dataset;
use super::encoding::{base64_decode_standard, parse_pairs, percent_decode};
use super::faults::{FaultAnswer, Faults, Request};
use super::feed::Cursor;
use super::limits::{Limits, Verdict};
use super::noise::Noise;
use super::query::{Endpoint, Query, Refused};
use super::settings::SimSettings;
use super::tokens::{self, AccessTokens};

const LIST: &str = "/v2/report/chat/sessions";
const CLASSIC_SCOPES: [&str; 2] = ["report_chat:read:admin", "imchat:read:admin"];

/// The mutable state of a running simulator.
#[derive(Debug)]
pub(super) struct State {
    pub tokens: AccessTokens,
    pub limits: Limits,
    pub faults: Faults,
    /// Without the figures that `limits` and `faults` keep.
    pub stats: SimStats,
    pub qps: u32,
    pub daily_limit: u64,
    pub page_tokens_expired_at: i64,
    /// The scopes of newly issued tokens.
    pub scopes: Arc<[String]>,
    pub credentials_valid: bool,
    pub down: bool,
}

#[derive(Debug)]
pub(super) struct Api {
    pub settings: SimSettings,
    pub data: Dataset,
    pub changing: Mutex<State>,
    noise: Noise,
}

/// An answer before latency is applied.
pub(super) struct Answer {
    pub response: Response<Body>,
    /// Faults of delivery are still to be applied, others are in the response already.
    pub fault: Option<FaultAnswer>,
}

impl Api {
    pub(super) fn new(settings: SimSettings) -> Arc<Self> {
        let noise = Noise::new(settings.seed);
        let data = Dataset::new(&settings, settings.today.unwrap_or_else(calendar::system_today));
        let changing = State {
            tokens: AccessTokens::new(noise.with(100)),
            limits: Limits::default(),
            faults: Faults::new(settings.faults, noise.with(101)),
            stats: SimStats::default(),
            qps: settings.qps,
            daily_limit: settings.daily_limit,
            page_tokens_expired_at: i64::MIN,
            scopes: settings.scopes.clone().into(),
            credentials_valid: true,
            down: false,
        };
        Arc::new(Self { settings, data, changing: Mutex::new(changing), noise })
    }

    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.changing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn today(&self) -> Date {
        self.settings.today.unwrap_or_else(calendar::system_today)
    }

    /// Answers a request; never waits.
    pub(super) fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Answer {
        let is_for_token = uri.path() == "/oauth/token";
        if self.with(|changing| changing.down) {
            self.with(|changing| changing.stats.requests += u64::from(!is_for_token));
            return plain(error(503, 503, "Service unavailable."));
        }
        if is_for_token {
            return self.token(method, uri, headers, body);
        }
        let Some(rest) = uri.path().strip_prefix(LIST) else {
            return plain(error(404, 2300, "This API endpoint is not recognized."));
        };
        let segment = match rest.strip_prefix('/') {
            None if rest.is_empty() => None,
            Some(segment) if !segment.is_empty() && !segment.contains('/') => Some(segment),
            _ => return plain(error(404, 2300, "This API endpoint is not recognized.")),
        };
        if method != Method::GET {
            return plain(error(405, 405, "Method not allowed."));
        }
        let answered = self.report(segment, uri, headers);
        answered.unwrap_or_else(plain)
    }

    fn report(&self, segment: Option<&str>, uri: &Uri, headers: &HeaderMap) -> Result<Answer, Refused> {
        let endpoint = if segment.is_some() { Endpoint::Messages } else { Endpoint::List };
        let left = self.admit(endpoint)?;
        let token = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
            .unwrap_or_default()
            .to_owned();
        let scopes = self.with(|changing| changing.tokens.scopes_of(&token));
        check_scopes(&scopes.ok_or_else(|| error(401, 124, "Invalid access token."))?, endpoint)?;
        let mut query = Query::read(uri.query().unwrap_or_default(), endpoint, self.today())?;
        let session = segment.map(|segment| self.find_session(segment)).transpose()?;
        let key = format!("{segment:?} {}", query.bound);
        let opened = query.page_token.as_deref().map(|token| {
            let oldest = calendar::now_ms() - self.settings.page_token_ttl.as_millis() as i64;
            let after = self.with(|changing| changing.page_tokens_expired_at).max(oldest);
            let opened = tokens::open(self.noise, &key, token, after);
            opened.ok_or_else(|| error(400, 300, "The next page token is either invalid or has expired."))
        });
        // The key holds the page token's cursor, not its text, which differs each time it is issued.
        let asked_key = format!("{key} {:?}", opened.as_ref().map(|opened| opened.as_ref().ok()));
        let has_page_token = query.page_token.is_some();
        let (from, to) = query.days;
        let request = Request::Report { key: &asked_key, session, from, to, has_page_token };
        let fault = self.with(|changing| changing.faults.next_for(&request, &self.data));
        if let Some(answer) = fault.as_ref().and_then(|fault| self.instead_of_page(fault, session, &token)) {
            return answer.map(plain);
        }
        if let Some(FaultAnswer::FewerDays(first)) = &fault {
            query.days.0 = from.saturating_add(first.days());
        }
        let is_repeated = matches!(fault, Some(FaultAnswer::RepeatPageToken));
        let cursor = opened.filter(|_| !is_repeated).transpose()?;
        let (next, rest) = if let Some(session) = session {
            self.messages_page(session, &query, cursor.as_deref(), &key)?
        } else {
            let moved = if let Some(FaultAnswer::Without(moved)) = fault { Some(moved) } else { None };
            self.list_page(&query, cursor.as_deref(), &key, moved)
        };
        let next = match &fault {
            Some(FaultAnswer::RepeatPageToken) => query.page_token.unwrap_or_else(|| "loop".to_owned()),
            Some(FaultAnswer::Circle) => tokens::seal(self.noise, &key, &next.unwrap_or_default()),
            _ => next.map(|next| tokens::seal(self.noise, &key, &next)).unwrap_or_default(),
        };
        let ((from, to), page_size) = (query.days, query.page_size);
        let body = format!(
            "{{\"from\":\"{from}\",\"to\":\"{to}\",\"page_size\":{page_size},\"next_page_token\":\"{next}\"{rest}"
        );
        self.with(|changing| changing.stats.pages_served += 1);
        let mut response = json_body(200, body);
        let fields = response.headers_mut();
        fields.insert("x-ratelimit-category", HeaderValue::from_static("Medium"));
        let qps = self.with(|changing| changing.qps);
        if qps > 0 {
            fields.insert("x-ratelimit-type", HeaderValue::from_static("QPS"));
            fields.insert("x-ratelimit-limit", HeaderValue::from(qps));
            fields.insert("x-ratelimit-remaining", HeaderValue::from(left));
        }
        Ok(Answer { response, fault })
    }

    /// Returns the fault's answer if it replaces the real page.
    fn instead_of_page(
        &self,
        fault: &FaultAnswer,
        session: Option<u32>,
        token: &str,
    ) -> Option<Result<Response<Body>, Refused>> {
        Some(Ok(match fault {
            FaultAnswer::Status { status, headers, body } => raw(*status, headers, body.clone()),
            FaultAnswer::ReplaceBody(body) => json_body(200, body.clone()),
            FaultAnswer::Bytes { headers, body } => raw(200, headers, body.clone()),
            FaultAnswer::Endless => {
                let chunk = Bytes::from_static(&[b' '; 16 << 10]);
                let forever = stream::repeat_with(move || Ok::<_, Infallible>(chunk.clone()));
                raw(200, &[], Body::from_stream(forever))
            }
            FaultAnswer::EndlessPages => {
                let number = self.with(|changing| changing.stats.requests);
                let items = match session {
                    Some(_) => "\"messages\":[]".to_owned(),
                    None => format!("\"sessions\":[{}]", self.data.info_json(0)),
                };
                json_body(200, format!("{{{items},\"next_page_token\":\"endless-{number}\"}}"))
            }
            FaultAnswer::ExpiredToken => {
                self.with(|changing| changing.tokens.revoke(token));
                return Some(Err(error(401, 124, "Access token is expired.")));
            }
            _ => return None,
        }))
    }

    fn admit(&self, endpoint: Endpoint) -> Result<u32, Refused> {
        let (now, day) = (calendar::now(), calendar::day_number(self.today()));
        self.with(|changing| {
            let stats = &mut changing.stats;
            stats.requests += 1;
            *match endpoint {
                Endpoint::List => &mut stats.list_requests,
                Endpoint::Messages => &mut stats.message_requests,
            } += 1;
            stats.first_request.get_or_insert(now);
            stats.last_request = Some(now);
            match changing.limits.arrive(now, day, changing.qps, changing.daily_limit) {
                Verdict::Admitted { left } => Ok(left),
                verdict => {
                    stats.rate_limited += 1;
                    Err(too_many(verdict, changing.qps, stats.rate_limited, (day + 1) * DAY_MS))
                }
            }
        })
    }

    /// Ids are encoded once, or twice where they begin with a slash or contain two in a row.
    fn find_session(&self, segment: &str) -> Result<u32, Refused> {
        let needs_two = |id: &str| id.starts_with('/') || id.contains("//");
        let once = percent_decode(segment, false).ok_or_else(no_such_session)?;
        if let Some(index) = self.data.index_of(&once).filter(|_| !needs_two(&once)) {
            return Ok(index);
        }
        let twice = percent_decode(&once, false).ok_or_else(no_such_session)?;
        // "." and ".." cannot be sent as a segment in any other way.
        let only_twice = twice != once && (needs_two(&twice) || twice == ".." || twice == ".");
        self.data.index_of(&twice).filter(|_| only_twice).ok_or_else(no_such_session)
    }

    /// Returns where the next page begins, and the body after its head. The session `moved` is left out, as if it were on
    /// another page.
    fn list_page(
        &self,
        query: &Query,
        cursor: Option<&[u64]>,
        key: &str,
        moved: Option<u32>,
    ) -> (Option<Vec<u64>>, String) {
        let (from, to) = query.days;
        let mut index = cursor.and_then(|cursor| cursor.first().copied()).unwrap_or(0) as u32;
        let mut listed = String::new();
        let (mut count, mut next) = (0, None);
        while index < self.data.session_count() {
            if self.data.is_listed(index, from, to) && moved != Some(index) {
                if count == query.page_size {
                    next = Some(vec![u64::from(index)]);
                    break;
                }
                if count > 0 {
                    listed.push(',');
                }
                listed.push_str(&self.data.info_json(index));
                count += 1;
            }
            index += 1;
        }
        let mut out = String::with_capacity(listed.len() + 50);
        if self.noise.with(200).with_text(key).one_in(5) {
            out.push_str(",\"x_sim_note\":{\"a\" : 1.50}");
        }
        out.push_str(",\"sessions\":[");
        out.push_str(&listed);
        out.push_str("]}");
        (next, out)
    }

    /// The same for the messages of a session.
    fn messages_page(
        &self,
        session: u32,
        query: &Query,
        cursor: Option<&[u64]>,
        key: &str,
    ) -> Result<(Option<Vec<u64>>, String), Refused> {
        let is_first = cursor.is_none();
        let cursor = cursor.and_then(|cursor| match cursor {
            [message_slot, classes @ ..] => {
                Some(Cursor { message_slot: *message_slot, class_slots: classes.try_into().ok()? })
            }
            [] => None,
        });
        let mut arrays: [String; 3] = Default::default();
        let next = self.data.page(session, query.days, query.options, (query.page_size, cursor), &mut arrays);
        let next = next.map(|cursor| [&[cursor.message_slot], &cursor.class_slots[..]].concat());
        if self.settings.empty_is_not_found && is_first && arrays.iter().all(String::is_empty) {
            return Err(no_such_session());
        }
        let [messages, edited, deleted] = arrays;
        let mut out = String::with_capacity(messages.len() + edited.len() + deleted.len() + 100);
        if self.noise.with(201).with_text(key).one_in(9) {
            out.push_str(",\"x_sim_note\":[1,2 ,3]");
        }
        out.push_str(",\"messages\":[");
        out.push_str(&messages);
        for (wanted, name, items) in [
            (query.options.edited, "edited_messages", edited),
            (query.options.deleted, "deleted_messages", deleted),
        ] {
            if wanted {
                out.push_str("],\"");
                out.push_str(name);
                out.push_str("\":[");
                out.push_str(&items);
            }
        }
        out.push_str("]}");
        Ok((next, out))
    }

    fn token(&self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Answer {
        let (fault, valid) = self.with(|changing| {
            changing.stats.token_requests += 1;
            (changing.faults.next_for(&Request::Token, &self.data), changing.credentials_valid)
        });
        match &fault {
            Some(FaultAnswer::Status { status, headers, body }) => {
                return plain(raw(*status, headers, body.clone()));
            }
            Some(FaultAnswer::ReplaceBody(body)) => return plain(json_body(200, body.clone())),
            _ => {}
        }
        if method != Method::POST {
            return plain(error(405, 405, "Method not allowed."));
        }
        let text = format!("{}&{}", uri.query().unwrap_or_default(), String::from_utf8_lossy(body));
        let pairs: BTreeMap<String, String> = parse_pairs(&text).into_iter().collect();
        let field = |name: &str| pairs.get(name).map(String::as_str).unwrap_or_default();
        let settings = &self.settings;
        if field("grant_type") != "account_credentials" {
            return plain(oauth_error("unsupported grant type", "unsupported_grant_type"));
        }
        let basic = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| base64_decode_standard(value.to_str().ok()?.strip_prefix("Basic ")?))
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .unwrap_or_default();
        if !valid || basic != format!("{}:{}", settings.client_id, settings.client_secret) {
            return plain(oauth_error("Invalid client_id or client_secret", "invalid_client"));
        }
        if field("account_id") != settings.account_id {
            return plain(oauth_error("The account does not exist or is not enabled.", "invalid_request"));
        }
        let (token, scopes) = self.with(|changing| {
            let scopes = changing.scopes.clone();
            (changing.tokens.issue(settings.token_ttl, scopes.clone()), scopes)
        });
        let response = json_body(
            200,
            format!(
                "{{\"access_token\":\"{token}\",\"token_type\":\"bearer\",\"expires_in\":{},\"scope\":\"{}\",\
                 \"api_url\":\"https://api.zoom.us\"}}",
                settings.token_ttl.as_secs(),
                scopes.join(" ")
            ),
        );
        Answer { response, fault }
    }
}

fn check_scopes(granted: &[String], endpoint: Endpoint) -> Result<(), Refused> {
    let has = |scope: &str| granted.iter().any(|granted| granted == scope);
    let granular = endpoint.scope();
    if has(granular) || CLASSIC_SCOPES.iter().all(|scope| has(scope)) {
        return Ok(());
    }
    let message = format!("Invalid access token, does not contain scopes:[{granular}].");
    Err(error(400, 4711, &message))
}

fn plain(response: Response<Body>) -> Answer {
    Answer { response, fault: None }
}
