//! Which handler answers which path. Names in paths may hold slashes, so routes are told by what stands before and after.

use crate::api::error::ApiError;
use crate::api::{Answer, Call, containers, create, excluded, exec, images, networks, stats, system, volumes};
use crate::http::Method;

use Method::{Delete, Get, Head, Post, Put};

/// Answers a request for a decoded path without its version.
pub(crate) async fn dispatch(path: &str, call: Call) -> Answer {
    let method = call.head.method;
    match (method, path) {
        (Get | Head, "/_ping") => Ok(system::ping(method)),
        (Get, "/version") => system::version(&call),
        (Get, "/info") => system::info(&call).await,
        (Get, "/events") => system::events(call).await,
        (Get, "/system/df") => system::disk_usage(&call).await,
        (Post, "/auth") => images::log_in(call).await,
        (Post, "/commit") => Err(ApiError::not_implemented("commit")),
        (Post, "/build") => Err(excluded::build(&call.query)),
        (Post, "/build/prune") => Ok(system::build_prune()),
        (Post, "/build/cancel") => Err(ApiError::not_implemented("build cancel")),
        (Post, "/session" | "/grpc") => Err(excluded::buildkit()),
        _ => match path.split('/').nth(1).unwrap_or_default() {
            "containers" => container(&path["/containers".len()..], call).await,
            "images" => image(&path["/images".len()..], call).await,
            "exec" => exec(&path["/exec".len()..], call).await,
            "networks" => network(&path["/networks".len()..], call).await,
            "volumes" => volume(&path["/volumes".len()..], call).await,
            "plugins" => excluded::plugins(method, &path["/plugins".len()..]),
            "distribution" if method == Get && path.ends_with("/json") => {
                let name = path["/distribution".len()..path.len() - "/json".len()].trim_start_matches('/');
                images::distribution(name, &call).await
            }
            family => Err(excluded::swarm(method, family, path)),
        },
    }
}

async fn container(path: &str, call: Call) -> Answer {
    let method = call.head.method;
    match (method, path) {
        (Get, "/json") => return containers::list(&call).await,
        (Post, "/create") => return create::create(call).await,
        (Post, "/prune") => return containers::prune(&call).await,
        _ => {}
    }
    let Some(rest) = path.strip_prefix('/').filter(|rest| !rest.is_empty()) else {
        return Err(ApiError::page_not_found());
    };
    if let Some((_, checkpoint)) = rest.split_once("/checkpoints")
        && (checkpoint.is_empty() || checkpoint.starts_with('/'))
    {
        return Err(excluded::checkpoints());
    }
    if method == Delete {
        return containers::remove(rest, &call).await;
    }
    if method == Get && rest.ends_with("/attach/ws") {
        return Err(ApiError::not_implemented("attach by websocket"));
    }
    let Some((name, verb)) = rest.rsplit_once('/').filter(|(name, _)| !name.is_empty()) else {
        return Err(ApiError::page_not_found());
    };
    match (method, verb) {
        (Get, "json") => containers::inspect(name, &call).await,
        (Get, "logs") => containers::logs(name, call).await,
        (Get, "export") => containers::export(name, call).await,
        (Get, "top") => containers::top(name, &call).await,
        (Get, "changes") => containers::changes(name, &call).await,
        (Get, "stats") => stats::stats(name, call).await,
        (Get | Head | Put, "archive") => Err(ApiError::not_implemented("container archive")),
        (Post, "start") => containers::start(name, call).await,
        (Post, "stop") => containers::stop(name, &call).await,
        (Post, "restart") => containers::restart(name, &call).await,
        (Post, "kill") => containers::kill(name, &call).await,
        (Post, "wait") => containers::wait(name, call).await,
        (Post, "resize") => containers::resize(name, &call).await,
        (Post, "attach") => containers::attach(name, call).await,
        (Post, "exec") => exec::create(name, call).await,
        (Post, "pause") => containers::pause(name, &call).await,
        (Post, "unpause") => containers::unpause(name, &call).await,
        (Post, "rename") => containers::rename(name, &call).await,
        (Post, "update") => containers::update(name, call).await,
        _ => Err(ApiError::page_not_found()),
    }
}

async fn image(path: &str, call: Call) -> Answer {
    let method = call.head.method;
    match (method, path) {
        (Get, "/json") => return images::list(&call).await,
        (Get, "/search") => return Err(ApiError::not_implemented("image search")),
        (Get, "/get") => return Err(ApiError::not_implemented("image save")),
        (Post, "/create") => return images::create(call).await,
        (Post, "/load") => return images::load(call).await,
        (Post, "/prune") => return images::prune(&call).await,
        (Post, "/delta") => return images::delta(call).await,
        _ => {}
    }
    let Some(rest) = path.strip_prefix('/').filter(|rest| !rest.is_empty()) else {
        return Err(ApiError::page_not_found());
    };
    if method == Delete {
        return images::remove(rest, &call).await;
    }
    let Some((name, verb)) = rest.rsplit_once('/').filter(|(name, _)| !name.is_empty()) else {
        return Err(ApiError::page_not_found());
    };
    match (method, verb) {
        (Get, "json") => images::inspect(name, &call).await,
        (Get, "history") => images::history(name, &call).await,
        (Get, "get") => Err(ApiError::not_implemented("image save")),
        (Post, "tag") => images::tag(name, &call).await,
        (Post, "push") => images::push(name, call).await,
        _ => Err(ApiError::page_not_found()),
    }
}

async fn exec(path: &str, call: Call) -> Answer {
    let Some((id, verb)) = path.strip_prefix('/').and_then(|rest| rest.split_once('/')) else {
        return Err(ApiError::page_not_found());
    };
    match (call.head.method, verb) {
        (Post, "start") => exec::start(id, call).await,
        (Post, "resize") => exec::resize(id, &call).await,
        (Get, "json") => exec::inspect(id, &call),
        _ => Err(ApiError::page_not_found()),
    }
}

async fn network(path: &str, call: Call) -> Answer {
    let name = path.strip_prefix('/').filter(|name| !name.is_empty());
    match (call.head.method, path, name) {
        (Get, "" | "/", _) => networks::list(&call).await,
        (Post, "/create", _) => Err(ApiError::not_implemented("network create")),
        (Post, "/prune", _) => Ok(networks::prune()),
        (Get, _, Some(name)) => networks::inspect(name, &call).await,
        (Delete, _, Some(name)) => networks::remove(name, &call).await,
        (Post, path, Some(_)) if path.ends_with("/connect") => Err(ApiError::not_implemented("network connect")),
        (Post, path, Some(_)) if path.ends_with("/disconnect") => Err(ApiError::not_implemented("network disconnect")),
        _ => Err(ApiError::page_not_found()),
    }
}

async fn volume(path: &str, call: Call) -> Answer {
    let name = path.strip_prefix('/').filter(|name| !name.is_empty());
    match (call.head.method, path, name) {
        (Get, "" | "/", _) => volumes::list(&call).await,
        (Post, "/create", _) => volumes::create(call).await,
        (Post, "/prune", _) => volumes::prune(&call).await,
        (Get, _, Some(name)) => volumes::inspect(name, &call).await,
        (Delete, _, Some(name)) => volumes::remove(name, &call).await,
        (Put, _, Some(_)) => Err(volumes::update()),
        _ => Err(ApiError::page_not_found()),
    }
}
