//! Faults: random ones at a set level, and exactly those that a test has scripted.

use std::collections::HashMap;
use std::time::Duration;

use jiff::civil::Date;

use super::dataset::Dataset;
use super::noise::Noise;
use super::settings::FaultLevel;

/// A fault that a test asks for.
#[derive(Clone, Debug)]
pub struct ScriptedFault {
    pub matches: Match,
    /// How many matching requests pass first.
    pub after: u32,
    /// How many matching requests it then hits; `u32::MAX` never ends.
    pub times: u32,
    pub answer: FaultAnswer,
}

/// Which requests a scripted fault applies to.
#[derive(Clone, Debug)]
pub enum Match {
    /// Any request for a report, of either endpoint; none for a token.
    Report,
    List,
    Messages,
    /// List requests whose range contains the day.
    ListTouching(Date),
    /// Message requests whose range contains the day.
    MessagesTouching(Date),
    /// Message requests for the session with this index.
    Session(u32),
    WithPageToken,
    /// The token endpoint; it supports `Status`, `ReplaceBody` and the answers that only affect delivery.
    Token,
}

/// What is answered instead.
#[derive(Clone, Debug)]
pub enum FaultAnswer {
    Status {
        status: u16,
        headers: Vec<(String, String)>,
        body: String,
    },
    /// The connection closes without an answer.
    Reset,
    /// The real answer, closed after this many bytes.
    CutBody(usize),
    /// The real answer, later.
    Delay(Duration),
    /// Nothing, for ten minutes.
    Hang,
    /// Status 200 with this body.
    ReplaceBody(String),
    /// Status 200 with these bytes, whatever they are.
    Bytes {
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// Status 200 and a body that never ends.
    Endless,
    /// A page without messages, or a list of only the first session, with a page token that was never used before.
    EndlessPages,
    /// 401, and the access token really is revoked.
    ExpiredToken,
    /// The first page, whatever was asked for; its next page token is the one in the request (or `loop`).
    RepeatPageToken,
    /// The real page, but the last one leads back to the first.
    Circle,
    /// The real page without this many of the first days; its own `from` says so.
    FewerDays(i32),
    /// The real list page without this session, as if it had moved to another page.
    Without(u32),
}

/// A request as faults see it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request<'a> {
    Token,
    /// Without a session it is for the list.
    Report {
        key: &'a str,
        session: Option<u32>,
        from: Date,
        to: Date,
        has_page_token: bool,
    },
}

#[derive(Debug)]
pub(super) struct Faults {
    level: FaultLevel,
    noise: Noise,
    scripted: Vec<ScriptedFault>,
    /// How often each request has arrived; only kept while there are random faults.
    asked: HashMap<u64, u32>,
    pub(super) count: u64,
}

impl Faults {
    pub(super) fn new(level: FaultLevel, noise: Noise) -> Self {
        Self { level, noise, scripted: Vec::new(), asked: HashMap::new(), count: 0 }
    }

    pub(super) fn script(&mut self, fault: ScriptedFault) {
        self.scripted.push(fault);
    }

    pub(super) fn clear_script(&mut self) {
        self.scripted.clear();
    }

    /// Returns the fault that hits this request, if any.
    pub(super) fn next_for(&mut self, request: &Request<'_>, data: &Dataset) -> Option<FaultAnswer> {
        let answer = self
            .scripted_for(request)
            .or_else(|| Self::permanent(request, data))
            .or_else(|| self.by_chance(request));
        self.count += u64::from(answer.is_some());
        answer
    }

    fn scripted_for(&mut self, request: &Request<'_>) -> Option<FaultAnswer> {
        let mut answer = None;
        for fault in self.scripted.iter_mut().filter(|fault| fault.matches.holds(request)) {
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 && answer.is_none() {
                fault.times = if fault.times == u32::MAX { u32::MAX } else { fault.times - 1 };
                answer = Some(fault.answer.clone());
            }
        }
        answer
    }

    /// The three things that never work in a nasty account.
    fn permanent(request: &Request<'_>, data: &Dataset) -> Option<FaultAnswer> {
        match request {
            Request::Report { session: None, from, to, .. } => {
                let (first, last) = data.unlistable_days()?;
                (*from <= last && *to >= first)
                    .then(|| json(500, "{\"code\":500,\"message\":\"Internal error.\"}"))
            }
            Request::Report { session: Some(session), .. }
                if data.always_failing_session() == Some(*session) =>
            {
                Some(json(500, "{\"code\":500,\"message\":\"Internal error.\"}"))
            }
            Request::Report { session: Some(session), .. } if data.gone() == Some(*session) => {
                Some(json(404, "{\"code\":5301,\"message\":\"The session does not exist.\"}"))
            }
            _ => None,
        }
    }

    fn by_chance(&mut self, request: &Request<'_>) -> Option<FaultAnswer> {
        let (per_mille, key) = match (self.level, request) {
            (FaultLevel::None, _) => return None,
            (FaultLevel::Light, Request::Token) => (30, "token"),
            (FaultLevel::Nasty, Request::Token) => (100, "token"),
            (FaultLevel::Light, Request::Report { key, .. }) => (20, *key),
            (FaultLevel::Nasty, Request::Report { key, .. }) => (60, *key),
        };
        let noise = self.noise.with_text(key);
        let asked = self.asked.entry(noise.value()).or_default();
        let noise = noise.with(u64::from(*asked));
        // From its fourth arrival on, in whatever job, a report request is let through, so that a client that keeps retrying
        // always gets everything.
        let spared = *asked >= 3 && !matches!(request, Request::Token);
        *asked = asked.saturating_add(1);
        if spared || noise.with(0).below(1_000) >= per_mille {
            return None;
        }
        Some(match (request, noise.with(1).below(12)) {
            (Request::Token, pick) => json(if pick % 2 == 0 { 500 } else { 503 }, "{\"reason\":\"busy\"}"),
            (_, 0) => json(500, "{\"code\":500,\"message\":\"Internal error.\"}"),
            (_, 1) => html(502),
            (_, 2) => json(503, ""),
            (_, 3) => FaultAnswer::Reset,
            (_, 4) => FaultAnswer::CutBody(noise.with(2).between(1, 900) as usize),
            (_, 5 | 6) => FaultAnswer::Delay(Duration::from_millis(300)),
            (_, 7) => FaultAnswer::ExpiredToken,
            // Observed: Zoom refuses tokens that are still valid.
            (_, 8) => json(401, "{\"code\":124,\"message\":\"Invalid access token.\"}"),
            (_, 9) => json(401, "{\"errorCode\":401,\"errorMessage\":\"Unauthorized\"}"),
            (_, 10) => json(400, "{\"code\":124,\"message\":\"Invalid access token.\"}"),
            _ => html(504),
        })
    }
}

impl Match {
    fn holds(&self, request: &Request<'_>) -> bool {
        let Request::Report { session, from, to, has_page_token, .. } = *request else {
            return matches!(self, Self::Token);
        };
        let touches = |day: &Date| from <= *day && *day <= to;
        match self {
            Self::Report => true,
            Self::List => session.is_none(),
            Self::Messages => session.is_some(),
            Self::ListTouching(day) => session.is_none() && touches(day),
            Self::MessagesTouching(day) => session.is_some() && touches(day),
            Self::Session(wanted) => session == Some(*wanted),
            Self::WithPageToken => has_page_token,
            Self::Token => false,
        }
    }
}

fn json(status: u16, body: &str) -> FaultAnswer {
    let headers = vec![("content-type".to_owned(), "application/json;charset=UTF-8".to_owned())];
    FaultAnswer::Status { status, headers, body: body.to_owned() }
}

fn html(status: u16) -> FaultAnswer {
    let headers = vec![("content-type".to_owned(), "text/html".to_owned())];
    FaultAnswer::Status { status, headers, body: format!("<html><h1>{status} Bad Gateway</h1></html>") }
}
