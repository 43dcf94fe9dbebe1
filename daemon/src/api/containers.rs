//! Containers: list, inspect, start, stop, kill, wait, logs, attach, resize, export, remove, prune.

use baleen_engine::{
    AttachRequest, EngineError, LogLine, LogsRequest, OutputStream, RemoveContainer, RestartPolicy, StopRequest,
    Timestamp, UpdateRequest, WaitCondition,
};
use bytes::Bytes;
use serde_json::json;

use super::attach::{DetachKeys, frame, pump};
use super::filters::{ContainerFilters, Filters};
use super::input::{self, Value};
use super::{Answer, ApiError, Call, Query};
use crate::http::{Reply, chunks};
use crate::json::{ContainerInspect, ContainerListItem};

pub(crate) const RAW: &str = "application/vnd.docker.raw-stream";
pub(crate) const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";
/// A body of a start that says something.
const START_BODY_BYTES_MAX: usize = 7;

/// `GET /containers/json`.
pub(crate) async fn list(call: &Call) -> Answer {
    let mut filters = ContainerFilters::new(Filters::parse(call.query.get("filters"))?)?;
    let limit = call.query.integer("limit")?.filter(|limit| *limit > 0);
    let all = call.query.boolean("all", false) || limit.is_some() || filters.imply_all();
    let containers = call.engine().containers(call.query.boolean("size", false)).await?;
    let [before, since] = filters.bounds();
    let before = moment(call, before.map(String::as_str).or(call.query.text("before"))).await?;
    let since = moment(call, since.map(String::as_str).or(call.query.text("since"))).await?;
    filters.between(before, since);
    if !filters.ancestor_names().is_empty() {
        let mut ids = Vec::new();
        for name in filters.ancestor_names() {
            // An unknown image matches nothing.
            if let Ok(image) = call.engine().image(name).await {
                ids.push(image.summary.id);
            }
        }
        filters.of_images(ids);
    }
    let now = Timestamp::now();
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let shown = containers
        .into_iter()
        .filter(|container| (all || container.state.status.is_running()) && filters.fit(container))
        .take(limit)
        .map(|container| ContainerListItem::new(container, now));
    super::json(200, &shown.collect::<Vec<_>>())
}

/// When the container that a filter names was created.
async fn moment(call: &Call, name: Option<&str>) -> Result<Option<Timestamp>, ApiError> {
    match name {
        Some(name) => Ok(Some(call.engine().container(name, false).await?.created)),
        None => Ok(None),
    }
}

/// `GET /containers/{id}/json`.
pub(crate) async fn inspect(name: &str, call: &Call) -> Answer {
    let details = call.engine().container(name, call.query.boolean("size", false)).await?;
    super::json(200, &ContainerInspect::from(details))
}

/// `POST /containers/{id}/start`.
pub(crate) async fn start(name: &str, mut call: Call) -> Answer {
    if call.query.text("checkpoint").is_some() {
        return Err(ApiError::invalid("checkpoint is not supported by this engine"));
    }
    let body = call.body.all(super::JSON_BYTES_MAX).await.map_err(|error| super::body_error(&error))?;
    if body.len() > START_BODY_BYTES_MAX {
        return Err(ApiError::invalid(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24",
        ));
    }
    call.engine().start_container(name).await?;
    Ok(Reply::empty(204))
}

fn stop_request(query: &Query, signal_since_42: bool) -> Result<StopRequest, ApiError> {
    let signal = query.text("signal").filter(|_| signal_since_42).map(str::to_owned);
    Ok(StopRequest { signal, timeout_seconds: query.integer("t")? })
}

/// `POST /containers/{id}/stop`. Goes on when the client has gone.
pub(crate) async fn stop(name: &str, call: &Call) -> Answer {
    call.engine().stop_container(name, stop_request(&call.query, call.asked.since(42))?).await?;
    Ok(Reply::empty(204))
}

/// `POST /containers/{id}/restart`. Goes on when the client has gone.
pub(crate) async fn restart(name: &str, call: &Call) -> Answer {
    call.engine().restart_container(name, stop_request(&call.query, call.asked.since(42))?).await?;
    Ok(Reply::empty(204))
}

/// `POST /containers/{id}/kill`.
pub(crate) async fn kill(name: &str, call: &Call) -> Answer {
    call.engine().kill_container(name, call.query.get("signal").unwrap_or_default()).await?;
    Ok(Reply::empty(204))
}

/// `POST /containers/{id}/pause`.
pub(crate) async fn pause(name: &str, call: &Call) -> Answer {
    call.engine().pause_container(name).await?;
    Ok(Reply::empty(204))
}

/// `POST /containers/{id}/unpause`.
pub(crate) async fn unpause(name: &str, call: &Call) -> Answer {
    call.engine().unpause_container(name).await?;
    Ok(Reply::empty(204))
}

/// `POST /containers/{id}/rename`.
pub(crate) async fn rename(name: &str, call: &Call) -> Answer {
    call.engine().rename_container(name, call.query.get("name").unwrap_or_default()).await?;
    Ok(Reply::empty(204))
}

/// `POST /containers/{id}/update`. The docker client gives a policy with an empty name when it means none of the options; an empty object
/// is how others (the balena supervisor) ask for no restarts.
pub(crate) async fn update(name: &str, mut call: Call) -> Answer {
    let mut body = call.json().await?.unwrap_or(Value::Null);
    let restart_policy = match body.take("RestartPolicy") {
        Value::Null => None,
        policy => {
            let is_empty = policy == Value::Map(Vec::new());
            Some(input::decode::<RestartPolicy>(policy)?).filter(|policy| is_empty || !policy.name.is_empty())
        }
    };
    let request = UpdateRequest { resources: input::decode(body)?, restart_policy };
    let warnings = call.engine().update_container(name, request).await?;
    super::json(200, &json!({ "Warnings": (!warnings.is_empty()).then_some(warnings) }))
}

/// `GET /containers/{id}/top`.
pub(crate) async fn top(name: &str, call: &Call) -> Answer {
    let table = call.engine().top(name, call.query.get("ps_args").unwrap_or_default()).await?;
    super::json(200, &json!({ "Titles": table.titles, "Processes": table.processes }))
}

/// `GET /containers/{id}/changes`.
pub(crate) async fn changes(name: &str, call: &Call) -> Answer {
    let changes = call.engine().container_changes(name).await?;
    let shown =
        changes.iter().map(|change| json!({ "Path": change.path, "Kind": change.kind as u8 })).collect::<Vec<_>>();
    super::json(200, &(!shown.is_empty()).then_some(shown))
}

/// `POST /containers/{id}/wait`: the head at once, for the client starts the container once it has it.
pub(crate) async fn wait(name: &str, call: Call) -> Answer {
    let condition = WaitCondition::parse(call.query.get("condition").unwrap_or_default())?;
    let wait = call.engine().wait_container(name, condition).await?;
    let (sender, receiver) = chunks();
    let api = call.api.clone();
    tokio::spawn(async move {
        let exit = tokio::select! {
            exit = wait.finished() => exit,
            () = sender.closed() => return,
            () = api.ending() => return,
        };
        let body = match exit {
            // Of a removal only its own failure is one; that the start failed was told by `start`.
            Ok(exit) if exit.error.is_empty() || condition == WaitCondition::Removed => {
                json!({ "StatusCode": exit.code })
            }
            Ok(exit) => json!({ "StatusCode": exit.code, "Error": { "Message": exit.error } }),
            Err(error) => json!({ "StatusCode": -1, "Error": { "Message": error.chain() } }),
        };
        if sender.send(format!("{body}\n")).await.is_ok() {
            sender.end();
        }
    });
    Ok(Reply::stream("application/json", receiver))
}

/// `POST /containers/{id}/resize`.
pub(crate) async fn resize(name: &str, call: &Call) -> Answer {
    let [height, width] = terminal_size(&call.query)?;
    call.engine().resize_container(name, height, width).await?;
    Ok(Reply::empty(200))
}

/// Rows and columns of a resize.
pub(crate) fn terminal_size(query: &Query) -> Result<[u16; 2], ApiError> {
    let size = |key: &str, word: &str| {
        let text = query.get(key).unwrap_or_default();
        let number = text
            .parse::<u32>()
            .map_err(|_| ApiError::invalid(format!("invalid resize {word} \"{text}\": invalid syntax")))?;
        Ok::<_, ApiError>(u16::try_from(number).unwrap_or(u16::MAX))
    };
    Ok([size("h", "height")?, size("w", "width")?])
}

/// `POST /containers/{id}/attach`.
pub(crate) async fn attach(name: &str, call: Call) -> Answer {
    let query = &call.query;
    let keys = DetachKeys::parse(query.text("detachKeys"))?;
    let request = AttachRequest {
        logs: query.boolean("logs", false),
        stream: query.boolean("stream", false),
        stdin: query.boolean("stdin", false),
        stdout: query.boolean("stdout", false),
        stderr: query.boolean("stderr", false),
    };
    let attachment = call.engine().attach_container(name, request).await?;
    let multiplexed = !attachment.tty && call.asked.since(42) && call.head.wants_upgrade();
    let keys = attachment.tty.then_some(keys);
    let api = call.api.clone();
    Ok(Reply::hijack(if multiplexed { MULTIPLEXED } else { RAW }, move |hijacked| async move {
        tokio::select! {
            _ = pump(hijacked, attachment, keys) => {}
            () = api.ending() => {}
        }
    }))
}

/// `GET /containers/{id}/logs`.
pub(crate) async fn logs(name: &str, call: Call) -> Answer {
    let query = &call.query;
    let time = |key: &str| match query.text(key) {
        None | Some("0") => Ok(None),
        Some(text) => {
            let bad = || ApiError::invalid(format!("invalid value for \"{key}\": \"{text}\""));
            Query::read_time(text).map(Some).ok_or_else(bad)
        }
    };
    let request = LogsRequest {
        stdout: query.boolean("stdout", false),
        stderr: query.boolean("stderr", false),
        follow: query.boolean("follow", false),
        tail: query.get("tail").and_then(|tail| tail.parse().ok()),
        since: time("since")?,
        until: time("until")?,
    };
    if !request.stdout && !request.stderr {
        return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
    }
    if query.boolean("details", false) {
        // The details are what `log-opts` choose, and none of them can be set.
        tracing::debug!("log details are empty");
    }
    let timestamps = query.boolean("timestamps", false);
    let mut log = call.engine().container_logs(name, request).await?;
    let content_type = if !log.tty && call.asked.since(42) { MULTIPLEXED } else { RAW };
    let (sender, receiver) = chunks();
    let api = call.api.clone();
    tokio::spawn(async move {
        loop {
            let line = tokio::select! {
                line = log.next() => line,
                () = sender.closed() => return,
                () = api.ending() => None,
            };
            let bytes = match line {
                None => return sender.end(),
                Some(Ok(line)) => render(&line, timestamps, log.tty),
                Some(Err(error)) => {
                    let text = format!("Error grabbing logs: {}\n", error.chain());
                    if log.tty { text.into() } else { frame(3, text.as_bytes()) }
                }
            };
            if sender.send(bytes).await.is_err() {
                return;
            }
        }
    });
    Ok(Reply::stream(content_type, receiver))
}

fn render(line: &LogLine, timestamps: bool, raw: bool) -> Bytes {
    let mut text = Vec::with_capacity(line.bytes.len() + 32);
    if timestamps {
        text.extend_from_slice(line.time.to_rfc3339_fixed().as_bytes());
        text.push(b' ');
    }
    text.extend_from_slice(&line.bytes);
    match line.stream {
        _ if raw => text.into(),
        OutputStream::Stdout => frame(1, &text),
        OutputStream::Stderr => frame(2, &text),
    }
}

/// `GET /containers/{id}/export`.
pub(crate) async fn export(name: &str, call: Call) -> Answer {
    let mut export = call.engine().export_container(name).await?;
    // An error before the first byte is a plain refusal.
    let first = export.next().await.transpose()?;
    let (sender, receiver) = chunks();
    tokio::spawn(async move {
        let mut next: Option<Result<Bytes, EngineError>> = first.map(Ok);
        while let Some(piece) = next {
            match piece {
                Ok(piece) => {
                    if sender.send(piece).await.is_err() {
                        return;
                    }
                }
                // An archive has no place for an error: the stream is broken off, which every client notices.
                Err(error) => return tracing::error!(error = error.chain(), "an export broke off"),
            }
            next = export.next().await;
        }
        sender.end();
    });
    Ok(Reply::stream("application/octet-stream", receiver))
}

/// `DELETE /containers/{id}`.
pub(crate) async fn remove(name: &str, call: &Call) -> Answer {
    if call.query.boolean("link", false) {
        return Err(ApiError::not_implemented("removal of a link"));
    }
    let how = RemoveContainer { force: call.query.boolean("force", false), volumes: call.query.boolean("v", false) };
    call.engine().remove_container(name, how).await?;
    Ok(Reply::empty(204))
}

/// `POST /containers/prune`.
pub(crate) async fn prune(call: &Call) -> Answer {
    let filter = Filters::parse(call.query.get("filters"))?.prune(false)?;
    let done = call.engine().prune_containers(filter).await?;
    let deleted = (!done.deleted.is_empty()).then_some(done.deleted);
    super::json(200, &json!({ "ContainersDeleted": deleted, "SpaceReclaimed": done.reclaimed_bytes }))
}
