//! `ps`.

use super::super::failure::Failure;
use super::super::flags::Parsed;
use super::super::http::Request;
use super::super::text::format::{self, Column, column, ellipsis, short_id};
use super::super::text::template::LABELS;
use super::super::text::units;
use super::super::text::value::Value;
use super::super::{Client, Ending, output};
use super::filters;

const COLUMNS: &[Column] = &[
    column("ID", "CONTAINER ID"),
    column("Names", "NAMES"),
    column("Image", "IMAGE"),
    column("Command", "COMMAND"),
    column("CreatedAt", "CREATED AT"),
    column("RunningFor", "CREATED"),
    column("Ports", "PORTS"),
    column("State", "STATE"),
    column("Status", "STATUS"),
    column("Size", "SIZE"),
    column("Labels", "LABELS"),
    column("Mounts", "MOUNTS"),
    column("LocalVolumes", "LOCAL VOLUMES"),
    column("Networks", "NETWORKS"),
];

pub(super) fn ps(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let format = parsed.text("format");
    let sized = parsed.is("size") || format.is_some_and(|format| format.contains(".Size"));
    let limit = if parsed.is("latest") { Some(1) } else { parsed.number("last").filter(|limit| *limit > 0) };
    let request = Request::get("/containers/json")
        .query_if("all", parsed.is("all"))
        .query_if("size", sized)
        .query_maybe("limit", limit.map(|limit| limit.to_string()))
        .query_maybe("filters", filters(parsed.list("filter"))?);
    let containers = client.document(request)?;
    let full = parsed.is("no-trunc");
    if parsed.is("quiet") && format.is_none() {
        for container in containers.items() {
            let id = container.text_at(&["Id"]);
            output::print(&format!("{}\n", if full { id.to_owned() } else { short_id(id) }))?;
        }
        return Ok(Ending::SUCCESS);
    }
    let rows: Vec<Value> = containers.items().iter().map(|container| row(container, full)).collect();
    let mut default = vec!["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"];
    if parsed.is("size") {
        default.push("Size");
    }
    format::print(format, COLUMNS, &default, &rows)?;
    Ok(Ending::SUCCESS)
}

/// A container as lists show it, also by `system df -v`.
pub(crate) fn row(container: &Value, full: bool) -> Value {
    let text = |name: &str| container.text_at(&[name]).to_owned();
    let id = text("Id");
    let names: Vec<&str> = container
        .at(&["Names"])
        .items()
        .iter()
        .map(|name| name.text().trim_start_matches('/'))
        // A name with a slash is that of a link.
        .filter(|name| full || !name.contains('/'))
        .collect();
    let command = if full { text("Command") } else { ellipsis(container.text_at(&["Command"]), 20) };
    let created = container.at(&["Created"]).number();
    let mut labels: Vec<(String, Value)> = container.at(&["Labels"]).members().to_vec();
    labels.sort_by(|a, b| a.0.cmp(&b.0));
    let label_text: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={}", value.text())).collect();
    let mounts = container.at(&["Mounts"]).items();
    let mount_names: Vec<String> = mounts
        .iter()
        .map(|mount| match mount.text_at(&["Name"]) {
            "" => mount.text_at(&["Source"]),
            name => name,
        })
        .map(|name| if full { name.to_owned() } else { ellipsis(name, 15) })
        .collect();
    let local = mounts.iter().filter(|mount| mount.text_at(&["Driver"]) == "local").count();
    let networks = container.at(&["NetworkSettings", "Networks"]).members();
    let mut networks: Vec<&str> = networks.iter().map(|(name, _)| name.as_str()).collect();
    networks.sort_unstable();
    let (own, whole) = (container.at(&["SizeRw"]).number(), container.at(&["SizeRootFs"]).number());
    let size = match whole {
        0 => units::size(own),
        whole => format!("{} (virtual {})", units::size(own), units::size(whole)),
    };
    let fields: Vec<(&str, String)> = vec![
        ("ID", if full { id.clone() } else { short_id(&id) }),
        ("Names", names.join(",")),
        ("Image", image(container, full)),
        ("Command", format::quote(&command)),
        ("CreatedAt", units::go_time(created)),
        ("RunningFor", units::ago(created)),
        ("Ports", ports(container.at(&["Ports"]).items())),
        ("State", text("State")),
        ("Status", text("Status")),
        ("Size", size),
        ("Labels", label_text.join(",")),
        ("Mounts", mount_names.join(",")),
        ("LocalVolumes", local.to_string()),
        ("Networks", networks.join(",")),
    ];
    let mut members: Vec<(String, Value)> =
        fields.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
    members.push((LABELS.to_owned(), Value::Object(labels)));
    Value::Object(members)
}

fn image(container: &Value, full: bool) -> String {
    let image = container.text_at(&["Image"]);
    if full {
        return image.to_owned();
    }
    if image.is_empty() {
        return "<no image>".to_owned();
    }
    let id = short_id(container.text_at(&["ImageID"]));
    if !id.is_empty() && short_id(image) == id && !image.contains('/') && image.starts_with("sha256:") || image == id {
        return id;
    }
    // A tag says enough.
    match image.split_once('@') {
        Some((name, _)) if name.rsplit('/').next().is_some_and(|last| last.contains(':')) => name.to_owned(),
        _ => image.to_owned(),
    }
}

/// `[::]:80`, `0.0.0.0:80`.
pub(crate) fn port_text(address: &str, port: &str) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Ports in order; neighbours of one kind are drawn together.
fn ports(ports: &[Value]) -> String {
    struct Group {
        address: String,
        protocol: String,
        first: i64,
        last: i64,
    }
    impl Group {
        fn text(&self) -> String {
            let range =
                if self.first == self.last { self.first.to_string() } else { format!("{}-{}", self.first, self.last) };
            match self.address.as_str() {
                "" => format!("{range}/{}", self.protocol),
                address => format!("{}->{range}/{}", port_text(address, &range), self.protocol),
            }
        }
    }
    let mut all: Vec<(i64, &str, i64, &str)> = ports
        .iter()
        .map(|port| {
            let number = |name: &str| port.at(&[name]).number();
            (number("PrivatePort"), port.text_at(&["IP"]), number("PublicPort"), port.text_at(&["Type"]))
        })
        .collect();
    all.sort_unstable();
    let mut done = Vec::new();
    let mut open: Vec<Group> = Vec::new();
    let mut mapped = Vec::new();
    for (private, address, public, protocol) in all {
        if !address.is_empty() && public != private {
            mapped.push(format!("{}->{private}/{protocol}", port_text(address, &public.to_string())));
            continue;
        }
        match open.iter_mut().find(|group| group.address == address && group.protocol == protocol) {
            Some(group) if private == group.last + 1 => group.last = private,
            Some(group) => {
                done.push(group.text());
                (group.first, group.last) = (private, private);
            }
            None => open.push(Group {
                address: address.to_owned(),
                protocol: protocol.to_owned(),
                first: private,
                last: private,
            }),
        }
    }
    done.extend(open.iter().map(Group::text));
    done.extend(mapped);
    done.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_drawn_together_as_docker_does() {
        let shown = |text: &str| ports(serde_json::from_str::<Value>(text).expect("JSON").items());
        assert_eq!(shown("[]"), "");
        assert_eq!(
            shown(
                r#"[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},{"IP":"::","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},{"PrivatePort":53,"Type":"udp"}]"#
            ),
            "53/udp, 0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"
        );
        assert_eq!(
            shown(
                r#"[{"PrivatePort":81,"Type":"tcp"},{"PrivatePort":80,"Type":"tcp"},{"PrivatePort":90,"Type":"tcp"}]"#
            ),
            "80-81/tcp, 90/tcp"
        );
        assert_eq!(
            shown(
                r#"[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":80,"Type":"tcp"},{"IP":"0.0.0.0","PrivatePort":81,"PublicPort":81,"Type":"tcp"}]"#
            ),
            "0.0.0.0:80-81->80-81/tcp"
        );
    }

    #[test]
    fn a_row_has_what_docker_shows() {
        let container: Value = serde_json::from_str(
            r#"{"Id":"0123456789abcdef","Names":["/web","/db/web"],"Image":"app:1@sha256:00","ImageID":"sha256:aa","Command":"/bin/sh -c 'while true; do :; done'",
            "Created":0,"Ports":[],"Labels":{"b":"2","a":"1"},"State":"running","Status":"Up 5 minutes","SizeRw":5,"SizeRootFs":2000,
            "NetworkSettings":{"Networks":{"x":{},"bridge":{}}},"Mounts":[{"Name":"0123456789abcdefgh","Driver":"local"},{"Source":"/etc"}]}"#,
        )
        .expect("JSON");
        let short = row(&container, false);
        for (field, text) in [
            ("ID", "0123456789ab"),
            ("Names", "web"),
            ("Image", "app:1"),
            ("Command", "\"/bin/sh -c 'while t…\""),
            ("CreatedAt", "1970-01-01 00:00:00 +0000 UTC"),
            ("Labels", "a=1,b=2"),
            ("Mounts", "0123456789abcd…,/etc"),
            ("LocalVolumes", "1"),
            ("Networks", "bridge,x"),
            ("Size", "5B (virtual 2kB)"),
        ] {
            assert_eq!(short.text_at(&[field]), text, "{field}");
        }
        assert_eq!(row(&container, true).text_at(&["Names"]), "web,db/web");
    }
}
