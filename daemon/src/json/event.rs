//! A line of `/events`.

use std::collections::BTreeMap;

use baleen_engine::{Event, EventType};
use serde::Serialize;

/// An event, with the fields of old that fleet agents read (`status`, `id`, `from`).
#[derive(Debug, Serialize)]
pub(crate) struct EventLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Action")]
    action: &'a str,
    #[serde(rename = "Actor")]
    actor: Actor<'a>,
    scope: &'static str,
    time: i64,
    #[serde(rename = "timeNano")]
    time_nano: i64,
}

#[derive(Debug, Serialize)]
struct Actor<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    #[serde(rename = "Attributes")]
    attributes: &'a BTreeMap<String, String>,
}

impl<'a> From<&'a Event> for EventLine<'a> {
    fn from(event: &'a Event) -> EventLine<'a> {
        let old = matches!(event.kind, EventType::Container | EventType::Image);
        let attributes = &event.actor.attributes;
        EventLine {
            status: old.then_some(&event.action),
            id: old.then_some(&event.actor.id),
            from: attributes.get("image").filter(|_| event.kind == EventType::Container).map(String::as_str),
            kind: event.kind.as_str(),
            action: &event.action,
            actor: Actor { id: &event.actor.id, attributes },
            scope: "local",
            time: event.time.seconds,
            time_nano: event.time.unix_nanoseconds(),
        }
    }
}
