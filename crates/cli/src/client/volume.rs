//! Volumes.

use serde_json::json;

use super::container::filters;
use super::failure::Failure;
use super::flags::Form::{Bool, List, Text};
use super::flags::{Command, Completes, MANY, Parsed, long, short};
use super::http::{Request, name};
use super::text::format::{self, Column, column};
use super::text::template::LABELS;
use super::text::units;
use super::text::value::Value;
use super::{Client, Ending, container, each, inspect, output, prune};

/// The commands on volumes.
pub(crate) static COMMANDS: &[Command] = &[
    Command {
        names: &["volume ls", "volume list"],
        arguments: "[OPTIONS]",
        count: (0, 0),
        about: "List volumes",
        flags: &[&[
            short('f', "filter", List("filter"), "Only those that match, as dangling=true"),
            long("format", Text("string"), "table, json, a template, or 'table TEMPLATE'"),
            short('q', "quiet", Bool, "Only their names"),
        ]],
        mixed: true,
        completes: Completes::Nothing,
        run: ls,
    },
    Command {
        names: &["volume create"],
        arguments: "[OPTIONS] [VOLUME]",
        count: (0, 1),
        about: "Create a volume",
        flags: &[&[
            short('d', "driver", Text("string"), "Its driver (default local)"),
            long("label", List("list"), "A label, as key=value"),
            short('o', "opt", List("map"), "An option of the driver, as key=value"),
            long("name", Text("string"), "Its name, as scripts of old write it"),
        ]],
        mixed: true,
        completes: Completes::Nothing,
        run: create,
    },
    Command {
        names: &["volume inspect"],
        arguments: "[OPTIONS] VOLUME [VOLUME...]",
        count: (1, MANY),
        about: "Show everything about volumes",
        flags: &[&[inspect::FORMAT]],
        mixed: true,
        completes: Completes::Volumes,
        run: inspect::volume,
    },
    Command {
        names: &["volume rm", "volume remove"],
        arguments: "[OPTIONS] VOLUME [VOLUME...]",
        count: (1, MANY),
        about: "Remove volumes and what is in them",
        flags: &[&[short('f', "force", Bool, "No failure if there is none of this name")]],
        mixed: true,
        completes: Completes::Volumes,
        run: rm,
    },
    Command {
        names: &["volume prune"],
        arguments: "[OPTIONS]",
        count: (0, 0),
        about: "Remove anonymous volumes that no container uses",
        flags: &[prune::FLAGS, &[short('a', "all", Bool, "Those with a name too")]],
        mixed: true,
        completes: Completes::Nothing,
        run: prune::volumes,
    },
];

const COLUMNS: &[Column] = &[
    column("Name", "VOLUME NAME"),
    column("Driver", "DRIVER"),
    column("Scope", "SCOPE"),
    column("Mountpoint", "MOUNTPOINT"),
    column("Labels", "LABELS"),
    column("Links", "LINKS"),
    column("Size", "SIZE"),
    column("Availability", "AVAILABILITY"),
    column("Group", "GROUP"),
    column("Status", "STATUS"),
];

fn ls(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let listed = client.document(Request::get("/volumes").query_maybe("filters", filters(parsed.list("filter"))?))?;
    let mut volumes = listed.at(&["Volumes"]).items().to_vec();
    volumes.sort_by(|a, b| container::natural(a.text_at(&["Name"]), b.text_at(&["Name"])));
    let format = parsed.text("format");
    if parsed.is("quiet") && format.is_none() {
        for volume in &volumes {
            output::print(&format!("{}\n", volume.text_at(&["Name"])))?;
        }
        return Ok(Ending::SUCCESS);
    }
    let rows: Vec<Value> = volumes.iter().map(row).collect();
    format::print(format, COLUMNS, &["Driver", "Name"], &rows)?;
    Ok(Ending::SUCCESS)
}

/// A volume as lists show it.
pub(super) fn row(volume: &Value) -> Value {
    let labels = volume.at(&["Labels"]).members();
    let label_text: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={}", value.text())).collect();
    let usage = volume.at(&["UsageData"]);
    let (links, size) = match usage {
        Value::Object(_) => {
            (usage.at(&["RefCount"]).number().to_string(), units::size(usage.at(&["Size"]).number().max(0)))
        }
        _ => ("N/A".to_owned(), "N/A".to_owned()),
    };
    let fields: [(&str, String); 10] = [
        ("Availability", "N/A".to_owned()),
        ("Driver", volume.text_at(&["Driver"]).to_owned()),
        ("Group", "N/A".to_owned()),
        ("Labels", label_text.join(",")),
        ("Links", links),
        ("Mountpoint", volume.text_at(&["Mountpoint"]).to_owned()),
        ("Name", volume.text_at(&["Name"]).to_owned()),
        ("Scope", volume.text_at(&["Scope"]).to_owned()),
        ("Size", size),
        ("Status", "N/A".to_owned()),
    ];
    let mut members: Vec<(String, Value)> =
        fields.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
    members.push((LABELS.to_owned(), volume.at(&["Labels"]).clone()));
    Value::Object(members)
}

fn create(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let name = match (parsed.arguments.first().map(String::as_str), parsed.text("name")) {
        (Some(argument), Some(flag)) if argument != flag => {
            return Err(Failure::refused(
                "conflicting options: either specify --name or provide positional arg, not both",
            ));
        }
        (argument, flag) => argument.or(flag).unwrap_or_default(),
    };
    let body = json!({
        "Name": name,
        "Driver": parsed.text("driver").unwrap_or("local"),
        "DriverOpts": container::pairs(parsed, "opt")?,
        "Labels": container::labels(parsed.list("label")),
    });
    let made = client.document(Request::post("/volumes/create").json(&body))?;
    output::print(&format!("{}\n", made.text_at(&["Name"])))?;
    Ok(Ending::SUCCESS)
}

fn rm(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    each(&parsed.arguments, |volume| {
        client
            .command(Request::new("DELETE", format!("/volumes/{}", name(volume))).query_if("force", parsed.is("force")))
    })
}
