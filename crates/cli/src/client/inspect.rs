//! Everything that the daemon knows of a thing.

use super::container::inspect as container_of;
use super::failure::Failure;
use super::flags::Form::{Bool, Text};
use super::flags::{Command, Completes, Flag, MANY, Parsed, long, short};
use super::http::{Request, name};
use super::text::template::Template;
use super::text::value::Value;
use super::{Client, Ending, output};

/// `-f`, wherever something is inspected.
pub(super) const FORMAT: Flag = short('f', "format", Text("string"), "json, or a template for each");

/// The commands that inspect.
pub(crate) static COMMANDS: &[Command] = &[
    Command {
        names: &["inspect"],
        arguments: "[OPTIONS] NAME|ID [NAME|ID...]",
        count: (1, MANY),
        about: "Show everything about containers, images, networks and volumes",
        flags: &[&[
            FORMAT,
            short('s', "size", Bool, "With the sizes of containers"),
            long("type", Text("string"), "Only of this type: container, image, network or volume"),
        ]],
        mixed: true,
        completes: Completes::Containers,
        run: anything,
    },
    Command {
        names: &["container inspect"],
        arguments: "[OPTIONS] CONTAINER [CONTAINER...]",
        count: (1, MANY),
        about: "Show everything about containers",
        flags: &[&[FORMAT, short('s', "size", Bool, "With their sizes")]],
        mixed: true,
        completes: Completes::Containers,
        run: container,
    },
    Command {
        names: &["image inspect"],
        arguments: "[OPTIONS] IMAGE [IMAGE...]",
        count: (1, MANY),
        about: "Show everything about images",
        flags: &[&[FORMAT]],
        mixed: true,
        completes: Completes::Images,
        run: image,
    },
];

fn container(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    all(parsed, |thing| sized(client, thing, parsed.is("size")))
}

fn image(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    all(parsed, |thing| client.document(Request::get(format!("/images/{}/json", name(thing)))))
}

/// `network inspect`.
pub(super) fn network(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    all(parsed, |thing| client.document(Request::get(format!("/networks/{}", name(thing)))))
}

/// `volume inspect`.
pub(super) fn volume(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    all(parsed, |thing| client.document(Request::get(format!("/volumes/{}", name(thing)))))
}

fn sized(client: &Client, thing: &str, size: bool) -> Result<Value, Failure> {
    match size {
        true => client.document(Request::get(format!("/containers/{}/json", name(thing))).query("size", "1")),
        false => container_of(client, thing),
    }
}

fn anything(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let wanted = parsed.text("type").unwrap_or_default();
    if !matches!(wanted, "" | "container" | "image" | "network" | "volume") {
        return Err(Failure::refused(format!(
            "{wanted:?} is not a valid value for --type; use container, image, network or volume"
        )));
    }
    all(parsed, |thing| {
        for kind in ["container", "image", "network", "volume"] {
            if !wanted.is_empty() && wanted != kind {
                continue;
            }
            let found = match kind {
                "container" => sized(client, thing, parsed.is("size")),
                "image" => client.document(Request::get(format!("/images/{}/json", name(thing)))),
                "network" => client.document(Request::get(format!("/networks/{}", name(thing)))),
                _ => client.document(Request::get(format!("/volumes/{}", name(thing)))),
            };
            match found {
                Err(failure) if failure.is_not_found() => {}
                // A name that cannot be one of this kind may be one of another.
                Err(Failure::Api { status: 400, .. }) if wanted.is_empty() => {}
                found => return found,
            }
        }
        let kind = if wanted.is_empty() { "object" } else { wanted };
        Err(Failure::refused(format!("Error: No such {kind}: {thing}")))
    })
}

/// Shows what is found, and then tells what is not.
fn all(parsed: &Parsed, find: impl Fn(&str) -> Result<Value, Failure>) -> Result<Ending, Failure> {
    let format = parsed.text("format").filter(|format| !format.is_empty());
    let template = match format {
        None | Some("json") => None,
        Some(format) => Some(Template::parse(format)?),
    };
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for thing in &parsed.arguments {
        match find(thing) {
            Ok(value) => found.push(value),
            Err(failure @ Failure::NoDaemon { .. }) => return Err(failure),
            Err(failure) => missing.push(failure),
        }
    }
    match (&template, format) {
        (Some(template), _) => {
            for value in &found {
                output::print(&(template.object(value)? + "\n"))?;
            }
        }
        (None, Some(_)) => output::print(&(Value::List(found).compact() + "\n"))?,
        (None, None) => output::print(&(Value::List(found).pretty() + "\n"))?,
    }
    for failure in &missing {
        output::tell(&failure.to_string());
    }
    Ok(if missing.is_empty() { Ending::SUCCESS } else { Ending::TOLD })
}
