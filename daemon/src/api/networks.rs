//! Networks: list and inspect of those that exist without being made; networks of users are to come.

use baleen_engine::Network;

use super::filters::Filters;
use super::{Answer, ApiError, Call};
use crate::http::Reply;
use crate::json::NetworkShape;

/// `GET /networks`.
pub(crate) async fn list(call: &Call) -> Answer {
    let filters = Filters::parse(call.query.get("filters"))?;
    filters.check(&["dangling", "driver", "id", "label", "name", "scope", "type"])?;
    let unused = filters.boolean("dangling")?;
    let shown = call.engine().networks().await?.into_iter().filter(|network| {
        filters.any("driver", |value| value == network.driver)
            && filters.any("id", |value| network.id.contains(value))
            && filters.matches("name", network.name)
            && filters.any("scope", |value| value == "local")
            && filters.any("type", |value| value == "builtin")
            && filters.values("label").is_empty()
            && unused != Some(true)
    });
    // Clients before 1.28 get the containers in a list too.
    let with_containers = call.asked.before(28);
    super::json(200, &shown.map(|network| NetworkShape::new(network, with_containers)).collect::<Vec<_>>())
}

/// `GET /networks/{id}`.
pub(crate) async fn inspect(name: &str, call: &Call) -> Answer {
    super::json(200, &NetworkShape::new(find(name, call).await?, true))
}

/// `DELETE /networks/{id}`: why it cannot be removed.
pub(crate) async fn remove(name: &str, call: &Call) -> Answer {
    let network = find(name, call).await?;
    Err(ApiError::new(403, format!("{} is a pre-defined network and cannot be removed", network.name)))
}

/// `POST /networks/prune`: the predefined ones cannot be pruned, and there are no others.
pub(crate) fn prune() -> Reply {
    Reply::whole(200, "application/json", "{\"NetworksDeleted\":null}\n")
}

async fn find(name: &str, call: &Call) -> Result<Network, ApiError> {
    let networks = call.engine().networks().await?;
    let exact = networks.iter().position(|network| network.id == name || network.name == name);
    let prefix = |network: &Network| name.len() >= 12 && network.id.starts_with(name);
    let found: Vec<usize> = (0..networks.len()).filter(|at| prefix(&networks[*at])).collect();
    match (exact, &found[..]) {
        (Some(at), _) | (None, &[at]) => Ok(networks.into_iter().nth(at).expect("a place of the list")),
        (None, []) => Err(ApiError::new(404, format!("network {name} not found"))),
        (None, several) => Err(ApiError::invalid(format!(
            "network {name} is ambiguous ({} matches found based on ID prefix)",
            several.len()
        ))),
    }
}
