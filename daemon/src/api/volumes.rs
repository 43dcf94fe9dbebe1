//! Volumes: list, create, inspect, remove, prune.

use std::collections::BTreeMap;

use baleen_engine::{CreateVolume, PruneVolumes};
use serde::Deserialize;
use serde_json::json;

use super::filters::Filters;
use super::input::{self, Value};
use super::{Answer, ApiError, Call};
use crate::http::Reply;
use crate::json::VolumeShape;

/// `GET /volumes`.
pub(crate) async fn list(call: &Call) -> Answer {
    let filters = Filters::parse(call.query.get("filters"))?;
    filters.check(&["dangling", "driver", "label", "name"])?;
    let unused = filters.boolean("dangling")?;
    let shown = call.engine().volumes(false).await?.into_iter().filter(|volume| {
        unused.is_none_or(|unused| unused == volume.users.is_empty())
            && filters.any("driver", |driver| driver == "local")
            && filters.matches("name", &volume.name)
            && filters.labels_match(volume.labels.as_ref())
    });
    let shown: Vec<_> = shown.map(VolumeShape::from).collect();
    super::json(200, &json!({ "Volumes": shown, "Warnings": null }))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CreateBody {
    name: String,
    driver: String,
    driver_opts: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

/// `POST /volumes/create`.
pub(crate) async fn create(mut call: Call) -> Answer {
    let body: CreateBody = input::decode(call.json().await?.unwrap_or(Value::Map(Vec::new())))?;
    let CreateBody { name, driver, driver_opts: options, labels } = body;
    let volume = call.engine().create_volume(CreateVolume { name, driver, options, labels }).await?;
    super::json(201, &VolumeShape::from(volume))
}

/// `GET /volumes/{name}`.
pub(crate) async fn inspect(name: &str, call: &Call) -> Answer {
    super::json(200, &VolumeShape::from(call.engine().volume(name).await?))
}

/// `DELETE /volumes/{name}`.
pub(crate) async fn remove(name: &str, call: &Call) -> Answer {
    call.engine().remove_volume(name, call.query.boolean("force", false)).await?;
    Ok(Reply::empty(204))
}

/// `POST /volumes/prune`: since API 1.42 named volumes only go where all are asked for.
pub(crate) async fn prune(call: &Call) -> Answer {
    let filters = Filters::parse(call.query.get("filters"))?;
    filters.check(&["all", "label", "label!"])?;
    let filter = PruneVolumes {
        all: filters.boolean("all")?.unwrap_or(call.asked.before(42)),
        labels: filters.values("label").to_vec(),
        not_labels: filters.values("label!").to_vec(),
    };
    let done = call.engine().prune_volumes(filter).await?;
    super::json(200, &json!({ "VolumesDeleted": done.deleted, "SpaceReclaimed": done.reclaimed_bytes }))
}

/// `PUT /volumes/{name}`.
pub(crate) fn update() -> ApiError {
    ApiError::new(503, "volume update only valid for cluster volumes, but swarm is unavailable")
}
