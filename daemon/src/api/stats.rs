//! `GET /containers/{id}/stats`: once, or each second for as long as the container exists.

use std::sync::Arc;
use std::time::Duration;

use baleen_engine::ContainerStats;

use super::{Answer, ApiError, Call};
use crate::http::{Reply, chunks};
use crate::json;

/// Between two moments.
const PERIOD: Duration = Duration::from_secs(1);

pub(crate) async fn stats(name: &str, call: Call) -> Answer {
    let stream = call.query.boolean("stream", true);
    let one_shot = call.query.boolean("one-shot", false) && call.asked.since(41);
    if stream && one_shot {
        return Err(ApiError::invalid("cannot have stream=true and one-shot=true"));
    }
    let first = call.engine().container_stats(name).await?;
    // By its ID from now on: the name may change hands.
    let id = first.id.clone();
    if !stream {
        if one_shot || first.usage.is_none() {
            return super::json(200, &json::stats(&first, None));
        }
        // Two moments, so that the client can tell how busy it is.
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = call.api.ending() => return Err(ApiError::invalid("the daemon is ending")),
        }
        let second = call.engine().container_stats(&id).await?;
        return super::json(200, &json::stats(&second, Some(&first)));
    }
    let (sender, receiver) = chunks();
    let (api, engine) = (call.api.clone(), Arc::clone(call.engine()));
    tokio::spawn(async move {
        let mut before: Option<ContainerStats> = None;
        let mut next = Some(first);
        while let Some(now) = next.take() {
            let line = format!("{}\n", json::stats(&now, before.as_ref()));
            tokio::select! {
                sent = sender.send(line) => if sent.is_err() { return },
                () = api.ending() => break,
            }
            before = Some(now);
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => {}
                () = sender.closed() => return,
                () = api.ending() => break,
            }
            // It ends with the container's removal.
            next = engine.container_stats(&id).await.ok();
        }
        sender.end();
    });
    Ok(Reply::stream("application/json", receiver))
}
