//! Removing what nothing uses, after asking.

use std::io::{self, BufRead, IsTerminal, Write};

use super::container::filters;
use super::failure::Failure;
use super::flags::Form::{Bool, List};
use super::flags::{Command, Completes, Flag, Parsed, long, short};
use super::http::Request;
use super::text::units;
use super::text::value::Value;
use super::{Client, Ending, output};

/// The flags that every prune has.
pub(super) const FLAGS: &[Flag] = &[
    long("filter", List("filter"), "Only what matches, as until=24h or label=key"),
    short('f', "force", Bool, "Do not ask"),
];

const ALL: Flag = short('a', "all", Bool, "Every image that no container uses, not only those without a name");

/// The commands that prune containers, images and everything; networks and volumes have theirs.
pub(crate) static COMMANDS: &[Command] = &[
    Command {
        names: &["container prune"],
        arguments: "[OPTIONS]",
        count: (0, 0),
        about: "Remove containers that do not run",
        flags: &[FLAGS],
        mixed: true,
        completes: Completes::Nothing,
        run: containers,
    },
    Command {
        names: &["image prune"],
        arguments: "[OPTIONS]",
        count: (0, 0),
        about: "Remove images that nothing uses",
        flags: &[FLAGS, &[ALL]],
        mixed: true,
        completes: Completes::Nothing,
        run: images,
    },
    Command {
        names: &["system prune"],
        arguments: "[OPTIONS]",
        count: (0, 0),
        about: "Remove everything that nothing uses",
        flags: &[FLAGS, &[ALL, long("volumes", Bool, "Anonymous volumes too")]],
        mixed: true,
        completes: Completes::Nothing,
        run: system,
    },
];

/// Asks the person, unless it was said that nobody need be asked.
fn agreed(parsed: &Parsed, warning: &str) -> Result<bool, Failure> {
    if parsed.is("force") {
        return Ok(true);
    }
    output::print(&format!("WARNING! {warning}\nAre you sure you want to continue? [y/N] "))?;
    let _ = io::stdout().lock().flush();
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    if !io::stdin().is_terminal() {
        output::print("\n")?;
    }
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y"))
}

/// Prunes one kind; answers the daemon's report.
fn ask(client: &Client, kind: &str, parsed: &Parsed, also: &[(&str, &str)]) -> Result<Value, Failure> {
    let mut wanted = parsed.list("filter").to_vec();
    wanted.extend(also.iter().map(|(key, value)| format!("{key}={value}")));
    client.document(Request::post(format!("/{kind}/prune")).query_maybe("filters", filters(&wanted)?))
}

fn show_list(head: &str, items: &[Value]) -> Result<(), Failure> {
    if items.is_empty() {
        return Ok(());
    }
    let mut text = format!("{head}:\n");
    for item in items {
        match item {
            Value::Text(name) => text.push_str(&format!("{name}\n")),
            // Of an image its names go before itself.
            item => {
                for (field, word) in [("Untagged", "untagged"), ("Deleted", "deleted")] {
                    if !item.text_at(&[field]).is_empty() {
                        text.push_str(&format!("{word}: {}\n", item.text_at(&[field])));
                    }
                }
            }
        }
    }
    output::print(&(text + "\n"))
}

fn reclaimed(bytes: i64) -> Result<Ending, Failure> {
    output::print(&format!("Total reclaimed space: {}\n", units::size_of_four_digits(bytes)))?;
    Ok(Ending::SUCCESS)
}

fn prune(
    client: &Client,
    parsed: &Parsed,
    kind: &str,
    also: &[(&str, &str)],
    field: &str,
    head: &str,
) -> Result<i64, Failure> {
    let report = ask(client, kind, parsed, also)?;
    show_list(head, report.at(&[field]).items())?;
    Ok(report.at(&["SpaceReclaimed"]).number())
}

fn containers(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    if !agreed(parsed, "This will remove all stopped containers.")? {
        return Ok(Ending::SUCCESS);
    }
    reclaimed(prune(client, parsed, "containers", &[], "ContainersDeleted", "Deleted Containers")?)
}

fn images(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let (warning, dangling) = match parsed.is("all") {
        true => ("This will remove all images without at least one container associated to them.", "false"),
        false => ("This will remove all dangling images.", "true"),
    };
    if !agreed(parsed, warning)? {
        return Ok(Ending::SUCCESS);
    }
    reclaimed(prune(client, parsed, "images", &[("dangling", dangling)], "ImagesDeleted", "Deleted Images")?)
}

/// `volume prune`.
pub(super) fn volumes(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let (warning, also): (_, &[(&str, &str)]) = match parsed.is("all") {
        true => ("This will remove all local volumes not used by at least one container.", &[("all", "true")]),
        false => ("This will remove anonymous local volumes not used by at least one container.", &[]),
    };
    if !agreed(parsed, warning)? {
        return Ok(Ending::SUCCESS);
    }
    reclaimed(prune(client, parsed, "volumes", also, "VolumesDeleted", "Deleted Volumes")?)
}

/// `network prune`.
pub(super) fn networks(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    if agreed(parsed, "This will remove all custom networks not used by at least one container.")? {
        prune(client, parsed, "networks", &[], "NetworksDeleted", "Deleted Networks")?;
    }
    Ok(Ending::SUCCESS)
}

fn system(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let (all, with_volumes) = (parsed.is("all"), parsed.is("volumes"));
    if with_volumes && parsed.list("filter").iter().any(|filter| filter.starts_with("until=")) {
        return Err(Failure::refused("the \"until\" filter is not supported with \"--volumes\""));
    }
    let mut warning =
        "This will remove:\n  - all stopped containers\n  - all networks not used by at least one container\n"
            .to_owned();
    if with_volumes {
        warning.push_str("  - all anonymous volumes not used by at least one container\n");
    }
    warning.push_str(match all {
        true => "  - all images without at least one container associated to them\n",
        false => "  - all dangling images\n",
    });
    if !agreed(parsed, &warning)? {
        return Ok(Ending::SUCCESS);
    }
    let mut bytes = prune(client, parsed, "containers", &[], "ContainersDeleted", "Deleted Containers")?;
    match prune(client, parsed, "networks", &[], "NetworksDeleted", "Deleted Networks") {
        Ok(_) => {}
        // A daemon without networks of its own has none to remove.
        Err(Failure::Api { status: 501, .. }) => {}
        Err(failure) => return Err(failure),
    }
    if with_volumes {
        bytes += prune(client, parsed, "volumes", &[], "VolumesDeleted", "Deleted Volumes")?;
    }
    let dangling = if all { "false" } else { "true" };
    bytes += prune(client, parsed, "images", &[("dangling", dangling)], "ImagesDeleted", "Deleted Images")?;
    reclaimed(bytes)
}
