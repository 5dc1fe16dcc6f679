//! The OpenAPI document: collected from the routes, completed here with what all of them share.

use jiff::ToSpan;
use jiff::civil::Date;
use serde_json::json;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, Info, License, OpenApi, Ref, RefOr, ResponseBuilder, Schema, ServerBuilder, Tag,
};

const DESCRIPTION: &str = "Extracts every Team Chat message of a Zoom account. Submit a job with a date range, follow it, and \
download one zip. Errors are RFC 9457 problem documents with a stable `code`. If the service has API keys, press \
*Authorize* and enter one, without its name.";

/// Responses of every operation under `/v1` and of `/metrics`: status, description, and what is appended to that if the
/// operation changes something.
const COMMON: [(&str, &str, &str); 4] = [
    ("401", "A valid API key is needed", ""),
    (
        "403",
        "The service has no API keys, and the request is not addressed to this machine or comes from another site's page",
        "; or the key is read-only",
    ),
    ("429", "Too many wrong keys from this address; see Retry-After", ""),
    ("500", "Internal error; the service's log has the details", ""),
];

/// Completes the document collected from the routes.
pub fn complete(mut document: OpenApi) -> OpenApi {
    let mut info = Info::new("zoom-chat-reports", env!("CARGO_PKG_VERSION"));
    info.description = Some(DESCRIPTION.to_owned());
    let mut license = License::new("MIT OR Apache-2.0");
    license.identifier = Some("MIT OR Apache-2.0".to_owned());
    info.license = Some(license);
    document.info = info;
    document.servers = Some(vec![ServerBuilder::new().url("/").build()]);
    document.security =
        Some(vec![SecurityRequirement::new("api_key", Vec::<String>::new()), SecurityRequirement::default()]);
    document.tags = Some(
        [
            ("jobs", "Extraction jobs"),
            ("archive", "The archive that a job makes"),
            ("service", "The service itself and its Zoom account"),
        ]
        .map(|(name, description)| {
            let mut tag = Tag::new(name);
            tag.description = Some(description.to_owned());
            tag
        })
        .to_vec(),
    );
    let components = document.components.get_or_insert_default();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.security_schemes.insert("api_key".to_owned(), RefOr::T(bearer));
    // An answer has all its members: null rather than absent.
    for (name, schema) in &mut components.schemas {
        if let RefOr::T(Schema::Object(answer)) = schema
            && ["View", "Page"].iter().any(|end| name.ends_with(end))
        {
            answer.required = answer.properties.keys().cloned().collect();
        }
    }
    for (path, item) in &mut document.paths.paths {
        if !path.starts_with("/v1") && path != "/metrics" {
            continue;
        }
        let operations = [(&mut item.get, false), (&mut item.post, true), (&mut item.delete, true)];
        for (operation, changes) in
            operations.into_iter().filter_map(|(operation, changes)| Some((operation.as_mut()?, changes)))
        {
            for (status, description, of_changes) in COMMON {
                let description = format!("{description}{}", if changes { of_changes } else { "" });
                let known = operation.responses.responses.get_mut(status);
                if let Some(RefOr::T(known)) = known {
                    known.description = format!("{}. {description}", known.description);
                    continue;
                }
                let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
                let response = ResponseBuilder::new()
                    .description(description)
                    .content("application/problem+json", content)
                    .build();
                operation.responses.responses.insert(status.to_owned(), RefOr::T(response));
            }
        }
    }
    document
}

/// The document as served, with an example whose dates are within Zoom's reach.
pub fn with_days_until(mut document: OpenApi, today: Date) -> OpenApi {
    let schemas = document.components.as_mut().map(|components| &mut components.schemas);
    let request = schemas.and_then(|schemas| schemas.get_mut("JobRequest"));
    if let Some(RefOr::T(Schema::Object(request))) = request {
        let ago = |days: i32| today.saturating_sub(days.days()).to_string();
        request.example = Some(json!({ "from": ago(30), "to": ago(1), "label": "case 4711" }));
    }
    document
}

/// The document as committed under `openapi/`.
pub fn document() -> String {
    let mut text = super::document().to_pretty_json().expect("the document is plain data");
    text.push('\n');
    text
}
