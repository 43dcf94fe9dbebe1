//! Ping, version, info, events, disk usage; and the networks and volumes that need no making.

use baleen_engine::{EventQuery, Timestamp};
use serde_json::json;

use super::filters::Filters;
use super::{Answer, ApiError, Call, Query, SERVER_VERSION, version};
use crate::http::{Method, Reply, chunks};
use crate::json::{ContainerListItem, EventLine, ImageListItem, Info, Version, VolumeShape};

/// `/_ping` (Q3).
pub(crate) fn ping(method: Method) -> Reply {
    let body = if method == Method::Head { "" } else { "OK" };
    Reply::whole(200, "text/plain; charset=utf-8", body)
        .with("Builder-Version", "1")
        .with("Swarm", "inactive")
        .with("Cache-Control", "no-cache, no-store, must-revalidate")
        .with("Pragma", "no-cache")
}

/// `/version`.
pub(crate) fn version(call: &Call) -> Answer {
    super::json(200, &Version::new(SERVER_VERSION, version::MAX.to_string(), call.api.minimum.to_string()))
}

/// `/info`.
pub(crate) async fn info(call: &Call) -> Answer {
    super::json(200, &Info::new(call.engine().info().await, &call.api.config(), SERVER_VERSION))
}

/// `/events`: lines for ever, or until `until`, the client or the daemon ends.
pub(crate) async fn events(call: Call) -> Answer {
    let time = |name: &str| call.query.text(name).map(|text| unix_time(text).ok_or_else(|| bad_time(text))).transpose();
    let filters = Filters::parse(call.query.get("filters"))?.into_lists();
    let query = EventQuery { since: time("since")?, until: time("until")?, filters };
    let mut events = call.engine().events(query)?;
    let (sender, receiver) = chunks();
    let api = call.api.clone();
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = sender.closed() => return,
                () = api.ending() => None,
            };
            let Some(event) = event else { return sender.end() };
            let mut line = serde_json::to_vec(&EventLine::from(&*event)).unwrap_or_default();
            line.push(b'\n');
            if sender.send(line).await.is_err() {
                return;
            }
        }
    });
    Ok(Reply::stream("application/json", receiver))
}

/// Seconds since 1970, with an optional fraction.
pub(crate) fn unix_time(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if fraction.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds = format!("{fraction:0<9}").parse().ok()?;
    Some(Timestamp { seconds: seconds.parse().ok()?, nanoseconds })
}

fn bad_time(text: &str) -> ApiError {
    ApiError::invalid(format!("failed to parse value as time or duration: \"{text}\""))
}

/// `/system/df`.
pub(crate) async fn disk_usage(call: &Call) -> Answer {
    let kinds: Vec<&str> = if call.asked.since(42) { call.query.all("type").collect() } else { Vec::new() };
    if let Some(unknown) = kinds.iter().find(|kind| !["container", "image", "volume", "build-cache"].contains(kind)) {
        return Err(ApiError::invalid(format!("unknown object type: {unknown}")));
    }
    let wanted = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
    let now = Timestamp::now();
    let (mut layers, mut images, mut containers) = (0, None, None);
    if wanted("image") {
        // What cut pulls have left is part of images to come, and goes with `system prune -a`.
        let usage = call.engine().disk_usage().await?;
        layers = usage.layers_bytes + usage.partial_bytes;
        let items =
            call.engine().images().await?.into_iter().map(|summary| ImageListItem::for_usage(summary, call.asked));
        images = Some(items.collect::<Vec<_>>());
    }
    let mut volumes = None;
    if wanted("volume") {
        volumes = Some(call.engine().volumes(true).await?.into_iter().map(VolumeShape::from).collect::<Vec<_>>());
    }
    if wanted("container") {
        let items =
            call.engine().containers(true).await?.into_iter().map(|details| ContainerListItem::new(details, now));
        containers = Some(items.collect::<Vec<_>>());
    }
    super::json(
        200,
        &json!({
            "LayersSize": layers,
            "Images": images,
            "Containers": containers,
            "Volumes": volumes,
            "BuildCache": wanted("build-cache").then_some([(); 0]),
        }),
    )
}

/// `/build/prune`: `docker system prune` asks for it and stops at an error; there is no cache.
pub(crate) fn build_prune() -> Reply {
    Reply::whole(200, "application/json", "{\"CachesDeleted\":null,\"SpaceReclaimed\":0}\n")
}

impl Query {
    /// A time as Docker's lists read one: unix seconds, RFC 3339, or a duration before now.
    pub(crate) fn read_time(text: &str) -> Option<Timestamp> {
        unix_time(text).or_else(|| Timestamp::parse_rfc3339(text)).or_else(|| {
            let seconds = duration_seconds(text)?;
            let now = Timestamp::now();
            Some(Timestamp { seconds: now.seconds - seconds, nanoseconds: now.nanoseconds })
        })
    }
}

/// Go's durations, in whole seconds: `1h30m`, `90s`.
fn duration_seconds(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0_f64;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let factor = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += value.parse::<f64>().ok()? * factor;
        rest = after;
    }
    (!text.is_empty() && total.is_finite() && total < 1e12).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_unix_seconds_with_a_fraction() {
        assert_eq!(unix_time("12"), Some(Timestamp { seconds: 12, nanoseconds: 0 }));
        assert_eq!(unix_time("12.5"), Some(Timestamp { seconds: 12, nanoseconds: 500_000_000 }));
        assert_eq!(unix_time("12.000000001"), Some(Timestamp { seconds: 12, nanoseconds: 1 }));
        for bad in ["", "x", "12.", "12.x", "12.0000000001", "1h"] {
            assert_eq!(unix_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(duration_seconds("1h30m"), Some(5400));
        assert_eq!(duration_seconds("90s"), Some(90));
        assert_eq!(duration_seconds("1500ms"), Some(1));
        for bad in ["", "h", "1", "1d", "1h30", "-1h"] {
            assert_eq!(duration_seconds(bad), None, "{bad}");
        }
    }
}
