//! Filters of lists: `{"key":{"value":true}}` or `{"key":["value"]}`; keys and labels must all match, values of a key are
//! alternatives.
//!
//! F1  Patterns are matched in linear time; a pattern is at most 4 KiB and its compiled form at most 1 MiB. One that is
//!     not a pattern matches nothing.
//! F2  There are at most 1000 values.

use std::collections::BTreeMap;

use baleen_engine::{ContainerDetails, ContainerStatus, ImageSummary, PruneFilter, Timestamp};
use regex::{Regex, RegexBuilder};

use super::input::{self, Value};
use super::{ApiError, Query};

const PATTERN_BYTES_MAX: usize = 4 << 10;
const COMPILED_BYTES_MAX: usize = 1 << 20;
const VALUES_MAX: usize = 1000;

/// The filters of a request.
#[derive(Debug, Default, Clone)]
pub(crate) struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Reads the query's `filters`.
    ///
    /// # Errors
    /// 400 `invalid filter`.
    pub(crate) fn parse(text: Option<&str>) -> Result<Filters, ApiError> {
        let text = text.unwrap_or_default().trim();
        if text.is_empty() {
            return Ok(Filters::default());
        }
        let invalid = || ApiError::invalid("invalid filter");
        let Value::Map(pairs) = input::parse(text.as_bytes()).map_err(|_| invalid())? else { return Err(invalid()) };
        let mut filters: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut left = VALUES_MAX;
        for (key, value) in pairs {
            let values = match value {
                Value::Null => Vec::new(),
                Value::List(items) => items.into_iter().map(plain).collect::<Option<Vec<_>>>().ok_or_else(invalid)?,
                // A value of `false` is as good as absent.
                Value::Map(pairs) => pairs
                    .into_iter()
                    .filter_map(|(value, given)| match given {
                        Value::Bool(true) => Some(Ok(value)),
                        Value::Bool(false) | Value::Null => None,
                        _ => Some(Err(invalid())),
                    })
                    .collect::<Result<Vec<_>, _>>()?,
                _ => return Err(invalid()),
            };
            left = left.checked_sub(values.len()).ok_or_else(invalid)?;
            filters.entry(key).or_default().extend(values);
        }
        Ok(Filters(filters))
    }

    /// Refuses keys that a list does not know.
    ///
    /// # Errors
    /// 400 `invalid filter 'k'`.
    pub(crate) fn check(&self, known: &[&str]) -> Result<(), ApiError> {
        match self.0.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(ApiError::invalid(format!("invalid filter '{key}'"))),
            None => Ok(()),
        }
    }

    /// The values of a key; none if it was not given.
    pub(crate) fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// All filters as they were given.
    pub(crate) fn into_lists(self) -> BTreeMap<String, Vec<String>> {
        self.0
    }

    /// Whether the key was not given, or one of its values fits.
    pub(crate) fn any(&self, key: &str, fits: impl Fn(&str) -> bool) -> bool {
        let values = self.values(key);
        values.is_empty() || values.iter().any(|value| fits(value))
    }

    /// Whether the key was not given, or one of its values is the text or a pattern found in it.
    pub(crate) fn matches(&self, key: &str, text: &str) -> bool {
        self.any(key, |value| value == text || pattern(value).is_some_and(|pattern| pattern.is_match(text)))
    }

    /// Whether all labels asked for are there.
    pub(crate) fn labels_match(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.values("label").iter().all(|wanted| {
            let found = |key: &str| labels.and_then(|labels| labels.get(key));
            match wanted.split_once('=') {
                Some((key, value)) => found(key).is_some_and(|given| given == value),
                None => found(wanted).is_some(),
            }
        })
    }

    /// A boolean key.
    ///
    /// # Errors
    /// 400 `invalid filter 'k=[v]'`.
    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, ApiError> {
        let read = |value: &String| match value.to_ascii_lowercase().as_str() {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        };
        let values = self.values(key);
        let invalid = || ApiError::invalid(format!("invalid filter '{key}=[{}]'", values.join(" ")));
        let read: Option<Vec<bool>> = values.iter().map(read).collect();
        match read.ok_or_else(invalid)?.as_slice() {
            [] => Ok(None),
            [first, rest @ ..] if rest.iter().all(|other| other == first) => Ok(Some(*first)),
            _ => Err(invalid()),
        }
    }

    /// What a prune takes.
    ///
    /// # Errors
    /// 400 for an unknown key or a time that is none.
    pub(crate) fn prune(&self, dangling: bool) -> Result<PruneFilter, ApiError> {
        self.check(if dangling { &["dangling", "until", "label", "label!"] } else { &["until", "label", "label!"] })?;
        Ok(PruneFilter {
            until: self.time("until")?,
            labels: self.values("label").to_vec(),
            not_labels: self.values("label!").to_vec(),
            dangling_only: self.boolean("dangling")?.unwrap_or(true),
        })
    }

    /// The moment of a list's `until`.
    ///
    /// # Errors
    /// 400 for a time that is none.
    pub(crate) fn prune_until(&self) -> Result<Option<Timestamp>, ApiError> {
        self.time("until")
    }

    fn time(&self, key: &str) -> Result<Option<Timestamp>, ApiError> {
        match self.values(key) {
            [] => Ok(None),
            [text] => {
                let bad =
                    || ApiError::invalid(format!("invalid filter '{key}=[{text}]': it is no time and no duration"));
                Query::read_time(text).ok_or_else(bad).map(Some)
            }
            _ => Err(ApiError::invalid(format!("more than one {key} filter specified"))),
        }
    }
}

/// A value of a filter list: docker-py sends numbers and booleans too.
fn plain(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

fn pattern(text: &str) -> Option<Regex> {
    if text.len() > PATTERN_BYTES_MAX {
        return None;
    }
    RegexBuilder::new(text).unicode(false).size_limit(COMPILED_BYTES_MAX).nest_limit(100).build().ok()
}

const CONTAINER_KEYS: &[&str] = &[
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

/// The filters of a container list, checked.
pub(crate) struct ContainerFilters {
    filters: Filters,
    names: Vec<(String, Option<Regex>)>,
    ids: Vec<(String, Option<Regex>)>,
    exited: Vec<i32>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    ancestors: Option<Vec<String>>,
}

impl ContainerFilters {
    /// Checks the filters; `before` and `since` are names of containers, `ancestors` the IDs that its names resolve to.
    ///
    /// # Errors
    /// 400 for an unknown key, state or number.
    pub(crate) fn new(filters: Filters) -> Result<ContainerFilters, ApiError> {
        filters.check(CONTAINER_KEYS)?;
        if let Some(bad) = filters.values("status").iter().find(|word| ContainerStatus::parse(word).is_none()) {
            return Err(ApiError::invalid(format!("invalid filter 'status={bad}'")));
        }
        if let Some(bad) = filters
            .values("health")
            .iter()
            .find(|w| !["starting", "healthy", "unhealthy", "none"].contains(&w.as_str()))
        {
            return Err(ApiError::invalid(format!("invalid filter 'health={bad}'")));
        }
        let exited = filters
            .values("exited")
            .iter()
            .map(|text| text.parse().map_err(|_| ApiError::invalid(format!("invalid filter 'exited={text}'"))));
        let exited = exited.collect::<Result<Vec<i32>, _>>()?;
        filters.boolean("is-task")?;
        let patterns = |key: &str| {
            filters.values(key).iter().map(|value| (value.trim_start_matches('/').to_owned(), pattern(value))).collect()
        };
        let (names, ids) = (patterns("name"), patterns("id"));
        Ok(ContainerFilters { filters, names, ids, exited, before: None, since: None, ancestors: None })
    }

    /// Whether stopped containers are shown without being asked for.
    pub(crate) fn imply_all(&self) -> bool {
        ["status", "exited", "before", "since"].iter().any(|key| !self.filters.values(key).is_empty())
    }

    /// The containers that stand for `before` and `since`.
    pub(crate) fn bounds(&self) -> [Option<&String>; 2] {
        ["before", "since"].map(|key| self.filters.values(key).first())
    }

    /// Sets the moments of those containers.
    pub(crate) fn between(&mut self, before: Option<Timestamp>, since: Option<Timestamp>) {
        (self.before, self.since) = (before, since);
    }

    /// The images that containers must be of.
    pub(crate) fn ancestor_names(&self) -> &[String] {
        self.filters.values("ancestor")
    }

    /// Sets the IDs of those images.
    pub(crate) fn of_images(&mut self, ids: Vec<String>) {
        self.ancestors = Some(ids);
    }

    /// Whether a container is shown.
    pub(crate) fn fit(&self, container: &ContainerDetails) -> bool {
        let filters = &self.filters;
        let found = |patterns: &[(String, Option<Regex>)], text: &str| {
            let slashed = format!("/{text}");
            patterns.is_empty()
                || patterns.iter().any(|(plain, pattern)| {
                    plain == text || pattern.as_ref().is_some_and(|p| p.is_match(text) || p.is_match(&slashed))
                })
        };
        let state = &container.state;
        let mode = container.host_config.network_mode.as_str();
        let exposed = &container.config.exposed_ports;
        let port_fits = |wanted: &str| {
            let wanted = if wanted.contains('/') { wanted.to_owned() } else { format!("{wanted}/tcp") };
            exposed.contains_key(&wanted)
        };
        let published = |wanted: &str| {
            let (port, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
            let ports = container.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
            ports.into_iter().any(|one| one.protocol == protocol && one.host_port.to_string() == port)
        };
        found(&self.names, &container.name)
            && found(&self.ids, &container.id)
            && filters.labels_match(Some(&container.config.labels))
            && filters.any("status", |word| word == state.status.as_str())
            && (self.exited.is_empty()
                || (!state.status.is_running()
                    && !state.finished_at.is_zero()
                    && self.exited.contains(&state.exit_code)))
            && filters.any("network", |value| {
                let network = container.network.is_some_and(|(name, id)| value == name || id.starts_with(value));
                network || value == mode
            })
            && filters.any("volume", |value| {
                container.mounts.iter().any(|mount| {
                    mount.name.as_deref() == Some(value) || mount.source == value || mount.destination == value
                })
            })
            && filters
                .any("health", |word| word == container.health.as_ref().map_or("none", |health| health.status.as_str()))
            && filters.any("isolation", |word| word.is_empty() || word == "default")
            && filters.any("is-task", |word| matches!(word, "0" | "false"))
            && filters.any("expose", port_fits)
            && filters.any("publish", published)
            && self.before.is_none_or(|before| container.created < before)
            && self.since.is_none_or(|since| container.created > since)
            && self.ancestors.as_ref().is_none_or(|ids| ids.contains(&container.image_id))
    }
}

/// Whether an image is shown. With a `reference` only the names that match stay, as in Docker's list.
pub(crate) fn image_fits(filters: &Filters, dangling: Option<bool>, image: &mut ImageSummary) -> bool {
    if !filters.labels_match(image.labels.as_ref())
        || dangling.is_some_and(|wanted| wanted != image.repo_tags.is_empty())
    {
        return false;
    }
    if filters.values("reference").is_empty() {
        return true;
    }
    let fits = |name: &String| filters.any("reference", |pattern| reference_fits(pattern, name));
    image.repo_tags.retain(fits);
    image.repo_digests.retain(fits);
    !image.repo_tags.is_empty() || !image.repo_digests.is_empty()
}

/// A shell glob on a familiar name, with or without its tag; `*` does not cross a slash.
fn reference_fits(pattern: &str, name: &str) -> bool {
    let bare = match name.split_once('@') {
        Some((repository, _)) => repository,
        None => name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(name, |(repository, _)| repository),
    };
    pattern.len() <= PATTERN_BYTES_MAX
        && (glob(pattern.as_bytes(), name.as_bytes()) || glob(pattern.as_bytes(), bare.as_bytes()))
}

/// Matches `*`, `?`, `[a-z]` and `\x` in time proportional to pattern times text.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == b'*' {
            retry = Some((p + 1, t));
            p += 1;
            continue;
        }
        if p == pattern.len() && t == text.len() {
            return true;
        }
        if t < text.len()
            && let Some(next) = glob_one(pattern, p, text[t])
        {
            (p, t) = (next, t + 1);
            continue;
        }
        // Let the last star take one byte more, if it may.
        match retry {
            Some((after, from)) if from < text.len() && text[from] != b'/' => {
                retry = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

/// Matches one byte; gives the place after what matched it.
fn glob_one(pattern: &[u8], at: usize, byte: u8) -> Option<usize> {
    match *pattern.get(at)? {
        b'?' => (byte != b'/').then_some(at + 1),
        b'\\' => (*pattern.get(at + 1)? == byte).then_some(at + 2),
        b'[' => {
            let end = at + 2 + pattern.get(at + 2..)?.iter().position(|&c| c == b']')?;
            let (negated, set) = match pattern[at + 1] {
                b'^' | b'!' => (true, &pattern[at + 2..end]),
                _ => (false, &pattern[at + 1..end]),
            };
            let mut found = false;
            let mut rest = set;
            while let [first, after @ ..] = rest {
                if let [b'-', last, after @ ..] = after {
                    found |= (*first..=*last).contains(&byte);
                    rest = after;
                } else {
                    found |= *first == byte;
                    rest = after;
                }
            }
            (found != negated).then_some(end + 1)
        }
        plain => (plain == byte).then_some(at + 1),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn filters(text: &str) -> Filters {
        Filters::parse(Some(text)).expect(text)
    }

    #[test]
    fn filters_are_read_in_both_forms() {
        assert_eq!(filters(r#"{"label":{"a=b":true,"c":true,"d":false}}"#).values("label"), ["a=b", "c"]);
        assert_eq!(filters(r#"{"label":["a=b","c"],"exited":[0]}"#).values("exited"), ["0"]);
        assert_eq!(filters(r#"{"dangling":[true]}"#).boolean("dangling").expect("a boolean"), Some(true));
        for empty in ["", "{}", " ", r#"{"label":null}"#, r#"{"label":[]}"#] {
            assert!(filters(empty).values("label").is_empty(), "{empty}");
        }
        for bad in ["[]", "x", "{", r#"{"a":"b"}"#, r#"{"a":[[]]}"#, r#"{"a":{"b":1}}"#] {
            assert_eq!(Filters::parse(Some(bad)).expect_err(bad).message, "invalid filter", "{bad}");
        }
        let many = format!(r#"{{"label":[{}"x"]}}"#, r#""x","#.repeat(VALUES_MAX));
        assert!(Filters::parse(Some(&many)).is_err());
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named() {
        assert_eq!(filters(r#"{"x":["1"]}"#).check(&["label"]).expect_err("unknown").message, "invalid filter 'x'");
        let error = filters(r#"{"dangling":["maybe"]}"#).boolean("dangling").expect_err("no boolean");
        assert_eq!(error.message, "invalid filter 'dangling=[maybe]'");
        assert!(ContainerFilters::new(filters(r#"{"status":["sleeping"]}"#)).is_err());
        assert!(ContainerFilters::new(filters(r#"{"exited":["x"]}"#)).is_err());
    }

    #[test]
    fn a_hostile_pattern_takes_no_time_and_a_broken_one_matches_nothing() {
        let name = "a".repeat(10_000);
        let hostile = filters(r#"{"name":["(a*)*b"]}"#);
        let start = Instant::now();
        assert!(!hostile.matches("name", &name));
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
        for broken in ["(", "[", "a{1000}{1000}{1000}", "x{99999999}"] {
            let filters = Filters(BTreeMap::from([("name".to_owned(), vec![broken.to_owned()])]));
            assert!(!filters.matches("name", "aaa"), "{broken}");
        }
        assert!(pattern(&"a".repeat(PATTERN_BYTES_MAX + 1)).is_none());
    }

    #[test]
    fn a_reference_leaves_only_the_names_that_match_it() {
        let mut image = ImageSummary {
            id: "sha256:ab".into(),
            repo_tags: vec!["host:5000/app:v1".into(), "mine:latest".into()],
            repo_digests: vec!["host:5000/app@sha256:cd".into()],
            created: None,
            size_bytes: 0,
            labels: None,
            containers: 0,
        };
        let mine = filters(r#"{"reference":["mine"]}"#);
        assert!(image_fits(&mine, Some(false), &mut image));
        assert_eq!((image.repo_tags.as_slice(), image.repo_digests.len()), (&["mine:latest".to_owned()][..], 0));
        assert!(!image_fits(&filters(r#"{"reference":["theirs"]}"#), None, &mut image.clone()));
        assert!(!image_fits(&Filters::default(), Some(true), &mut image));
    }

    #[test]
    fn references_are_matched_by_globs() {
        for (pattern, name, fits) in [
            ("busybox", "busybox:latest", true),
            ("busybox:latest", "busybox:latest", true),
            ("busy*", "busybox:latest", true),
            ("*", "busybox:latest", true),
            ("*", "host:5000/a/b:1", false),
            ("host:5000/*/*", "host:5000/a/b:1", true),
            ("host:5000/*", "host:5000/a/b:1", false),
            ("busy?ox", "busybox:latest", true),
            ("[a-c]usybox", "busybox:latest", true),
            ("[^a-c]usybox", "busybox:latest", false),
            ("*:1.*", "app:1.2", true),
            ("app@sha256:*", "app@sha256:ab", true),
            ("", "busybox:latest", false),
            ("[", "[", false),
        ] {
            assert_eq!(reference_fits(pattern, name), fits, "{pattern} {name}");
        }
        let start = Instant::now();
        assert!(!glob("*a".repeat(1000).as_bytes(), "b".repeat(2000).as_bytes()));
        assert!(start.elapsed() < Duration::from_secs(1));
    }
}
