//! What this engine leaves out on purpose: the exact answers, so that clients go on as they would beside a stock engine
//! without those parts.

use crate::api::Answer;
use crate::api::error::ApiError;
use crate::api::json;
use crate::api::query::Query;
use crate::http::Method;

/// `/session` and `/grpc`.
pub(crate) fn buildkit() -> ApiError {
    ApiError::new(501, "BuildKit is not supported by this engine")
}

/// `POST /build`.
pub(crate) fn build(query: &Query) -> ApiError {
    if query.get("version") == Some("2") {
        return ApiError::new(501, "BuildKit (version=2) is not supported by this engine; use version=1");
    }
    ApiError::not_implemented("build")
}

/// The three checkpoint routes.
pub(crate) fn checkpoints() -> ApiError {
    ApiError::new(501, "checkpoint and restore are not supported by this engine")
}

/// Plugins: there are none, and asking for one by name must look like asking for an unknown one.
pub(crate) fn plugins(method: Method, path: &str) -> Answer {
    match (method, path) {
        (Method::Get, "" | "/") => json(200, &[(); 0]),
        (Method::Get, path) if path.ends_with("/json") && path.len() > "//json".len() => {
            let name = path.trim_start_matches('/').trim_end_matches("/json");
            Err(ApiError::new(404, format!("plugin \"{name}\" not found")))
        }
        _ => Err(ApiError::new(501, "plugins are not supported by this engine")),
    }
}

/// Swarm and its objects; anything else has no page.
pub(crate) fn swarm(method: Method, family: &str, path: &str) -> ApiError {
    const FAMILIES: [&str; 6] = ["swarm", "nodes", "services", "tasks", "secrets", "configs"];
    if !FAMILIES.contains(&family) {
        return ApiError::page_not_found();
    }
    match (method, path) {
        (Method::Post, "/swarm/init" | "/swarm/join" | "/swarm/unlock" | "/swarm/update") => {
            ApiError::new(501, "Swarm mode is not supported by this engine")
        }
        (Method::Post, "/swarm/leave") => ApiError::new(503, "This node is not part of a swarm"),
        _ => ApiError::new(503, "This node is not a swarm manager. Swarm mode is not supported by this engine."),
    }
}
