//! What happened, told to whoever listens: a ring of the last events and a queue for each reader.
//!
//! V1  An event is sent after the record that it tells of is durable.
//! V2  Sending never waits: a reader that is [`QUEUE_MAX`] events behind loses the newest ones.
//! V3  Memory is bounded: [`RING_MAX`] events of history, [`READERS_MAX`] readers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::error::EngineError;
use crate::time::Timestamp;

const RING_MAX: usize = 256;
const QUEUE_MAX: usize = 256;
const READERS_MAX: usize = 1024;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventType {
    /// A container.
    Container,
    /// An image.
    Image,
    /// A network.
    Network,
    /// A volume.
    Volume,
    /// The engine itself.
    Daemon,
}

impl EventType {
    /// The API's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Network => "network",
            Self::Volume => "volume",
            Self::Daemon => "daemon",
        }
    }
}

/// Whom an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// ID of a container, name of an image.
    pub id: String,
    /// `name`, `image`, labels and what the action adds.
    pub attributes: BTreeMap<String, String>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// About what.
    pub kind: EventType,
    /// `create`, `die`, `health_status: healthy`.
    pub action: String,
    /// About whom.
    pub actor: Actor,
    /// By the clock, for display.
    pub time: Timestamp,
}

/// Which events a reader wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// History from then on; with neither this nor `until` there is none.
    pub since: Option<Timestamp>,
    /// The stream ends then.
    pub until: Option<Timestamp>,
    /// The API's filters: values of a key are alternatives, keys and labels must all match.
    pub filters: BTreeMap<String, Vec<String>>,
}

const FILTER_KEYS: [&str; 14] = [
    "container",
    "image",
    "network",
    "volume",
    "daemon",
    "plugin",
    "type",
    "event",
    "label",
    "scope",
    "node",
    "service",
    "secret",
    "config",
];

impl EventQuery {
    fn check(&self) -> Result<(), EngineError> {
        if let Some(key) = self.filters.keys().find(|key| !FILTER_KEYS.contains(&key.as_str())) {
            return Err(EngineError::invalid(format!("invalid filter '{key}'")));
        }
        match (self.since, self.until) {
            (Some(since), Some(until)) if since > until => Err(EngineError::invalid(format!(
                "`since` time ({}) cannot be after `until` time ({})",
                since.seconds, until.seconds
            ))),
            _ => Ok(()),
        }
    }

    /// Whether the filters let an event pass; the times are not looked at.
    pub fn matches(&self, event: &Event) -> bool {
        self.filters.iter().all(|(key, values)| values.is_empty() || matches_key(event, key, values))
    }
}

fn matches_key(event: &Event, key: &str, values: &[String]) -> bool {
    let attribute = |name: &str| event.actor.attributes.get(name).map_or("", String::as_str);
    match key {
        "type" => values.iter().any(|value| value == event.kind.as_str()),
        "scope" => values.iter().any(|value| value == "local"),
        "event" => values.iter().any(|value| {
            let base = event.action.split(':').next().unwrap_or_default();
            *value == event.action || value == base
        }),
        "label" => values.iter().all(|value| match value.split_once('=') {
            Some((name, wanted)) => event.actor.attributes.get(name).is_some_and(|given| given == wanted),
            None => event.actor.attributes.contains_key(value),
        }),
        "image" => {
            let name = if event.kind == EventType::Image { attribute("name") } else { attribute("image") };
            let named = [event.actor.id.as_str(), name, without_tag(&event.actor.id), without_tag(name)];
            values.iter().any(|value| !value.is_empty() && named.contains(&value.as_str()))
        }
        kind => {
            let (id, name) = (event.actor.id.as_str(), attribute("name"));
            event.kind.as_str() == kind && values.iter().any(|value| id.starts_with(value) || name.starts_with(value))
        }
    }
}

/// `host:5000/x:tag` without `:tag`.
fn without_tag(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((rest, tag)) if !tag.contains('/') => rest,
        _ => name,
    }
}

#[derive(Debug, Default)]
pub(crate) struct Events {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ring: VecDeque<Arc<Event>>,
    readers: Vec<mpsc::Sender<Arc<Event>>>,
}

impl Events {
    /// Tells everybody (V2).
    pub(crate) fn send(&self, kind: EventType, action: &str, id: &str, attributes: BTreeMap<String, String>) {
        let actor = Actor { id: id.to_owned(), attributes };
        let event = Arc::new(Event { kind, action: action.to_owned(), actor, time: Timestamp::now() });
        let mut inner = self.lock();
        if inner.ring.len() == RING_MAX {
            inner.ring.pop_front();
        }
        inner.ring.push_back(Arc::clone(&event));
        inner
            .readers
            .retain(|reader| !matches!(reader.try_send(Arc::clone(&event)), Err(mpsc::error::TrySendError::Closed(_))));
    }

    pub(crate) fn subscribe(&self, query: EventQuery) -> Result<EventStream, EngineError> {
        query.check()?;
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        let mut inner = self.lock();
        inner.readers.retain(|reader| !reader.is_closed());
        if inner.readers.len() >= READERS_MAX {
            return Err(EngineError::conflict(format!("{READERS_MAX} clients read events already; close one first")));
        }
        // Under the same lock as the registration: no event is both in the history and in the queue, or in neither.
        let wants_history = query.since.is_some() || query.until.is_some();
        let history = inner.ring.iter().filter(|_| wants_history).cloned().collect();
        inner.readers.push(sender);
        Ok(EventStream { query, history, queue })
    }

    pub(crate) fn listeners(&self) -> u64 {
        self.lock().readers.iter().filter(|reader| !reader.is_closed()).count() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds this lock; if something did, the ring is still whole.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Events as they happen, after the history that was asked for.
#[derive(Debug)]
pub struct EventStream {
    query: EventQuery,
    history: VecDeque<Arc<Event>>,
    queue: mpsc::Receiver<Arc<Event>>,
}

impl EventStream {
    /// The next event that passes the filters; `None` at `until`.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            let event = match self.history.pop_front() {
                Some(event) => event,
                None => self.live().await?,
            };
            if self.query.since.is_some_and(|since| event.time < since) || !self.query.matches(&event) {
                continue;
            }
            if self.query.until.is_some_and(|until| event.time > until) {
                return None;
            }
            return Some(event);
        }
    }

    async fn live(&mut self) -> Option<Arc<Event>> {
        let Some(until) = self.query.until else {
            return self.queue.recv().await;
        };
        let left = until.unix_nanoseconds().saturating_sub(Timestamp::now().unix_nanoseconds());
        let left = Duration::from_nanos(u64::try_from(left).ok()?);
        tokio::time::timeout(left, self.queue.recv()).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn filters(pairs: &[(&str, &[&str])]) -> EventQuery {
        let filters = pairs
            .iter()
            .map(|(key, values)| ((*key).to_owned(), values.iter().map(|value| (*value).to_owned()).collect()))
            .collect();
        EventQuery { filters, ..EventQuery::default() }
    }

    fn container_event(action: &str) -> Event {
        Event {
            kind: EventType::Container,
            action: action.to_owned(),
            actor: Actor {
                id: "0123abcd".to_owned(),
                attributes: attributes(&[("name", "web"), ("image", "host:5000/app:v1"), ("tier", "front")]),
            },
            time: Timestamp::now(),
        }
    }

    #[test]
    fn filters_of_one_key_are_alternatives_and_keys_and_labels_must_all_match() {
        let event = container_event("health_status: healthy");
        let passing: [&[(&str, &[&str])]; 8] = [
            &[],
            &[("type", &["image", "container"])],
            &[("event", &["health_status"])],
            &[("container", &["0123"])],
            &[("container", &["we"])],
            &[("image", &["host:5000/app"])],
            &[("image", &["host:5000/app:v1"]), ("label", &["tier", "tier=front"])],
            &[("scope", &["local"])],
        ];
        for pairs in passing {
            assert!(filters(pairs).matches(&event), "{pairs:?}");
        }
        let stopped: [&[(&str, &[&str])]; 5] = [
            &[("type", &["image"])],
            &[("label", &["tier=front", "tier=back"])],
            &[("network", &["web"])],
            &[("event", &["health"])],
            &[("container", &["0123"]), ("event", &["die"])],
        ];
        for pairs in stopped {
            assert!(!filters(pairs).matches(&event), "{pairs:?}");
        }
        assert!(filters(&[("colour", &["red"])]).check().is_err());
    }

    #[tokio::test]
    async fn a_reader_without_times_gets_no_history_and_one_with_since_gets_it_once() {
        let events = Events::default();
        events.send(EventType::Container, "create", "a", BTreeMap::new());
        let mut fresh = events.subscribe(EventQuery::default()).unwrap();
        let since = Some(Timestamp { seconds: 0, nanoseconds: 0 });
        let mut with_history = events.subscribe(EventQuery { since, ..EventQuery::default() }).unwrap();
        events.send(EventType::Container, "start", "a", BTreeMap::new());
        assert_eq!(fresh.next().await.unwrap().action, "start");
        assert_eq!(with_history.next().await.unwrap().action, "create");
        assert_eq!(with_history.next().await.unwrap().action, "start");
    }

    #[tokio::test]
    async fn a_stuck_reader_delays_nobody_and_memory_stays_bounded() {
        let events = Events::default();
        let mut stuck = events.subscribe(EventQuery::default()).unwrap();
        for number in 0..10_000 {
            events.send(EventType::Container, &number.to_string(), "a", BTreeMap::new());
        }
        assert_eq!(stuck.next().await.unwrap().action, "0");
        assert_eq!(events.lock().ring.len(), RING_MAX);
        assert!(stuck.queue.len() < QUEUE_MAX);
    }

    #[tokio::test]
    async fn an_until_in_the_past_ends_the_stream_after_the_history() {
        let events = Events::default();
        events.send(EventType::Image, "pull", "x:y", BTreeMap::new());
        let until = Some(Timestamp::now());
        let mut stream = events.subscribe(EventQuery { until, ..EventQuery::default() }).unwrap();
        assert_eq!(stream.next().await.unwrap().action, "pull");
        assert!(stream.next().await.is_none());
    }

    #[test]
    fn since_after_until_is_refused_in_dockers_words() {
        let query = EventQuery {
            since: Some(Timestamp { seconds: 5, nanoseconds: 0 }),
            until: Some(Timestamp { seconds: 4, nanoseconds: 0 }),
            ..EventQuery::default()
        };
        let error = Events::default().subscribe(query).unwrap_err();
        assert_eq!(error.to_string(), "`since` time (5) cannot be after `until` time (4)");
    }
}
