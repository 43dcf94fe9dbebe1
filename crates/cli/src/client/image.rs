//! Images.

use std::fs;
use std::io::{self, IsTerminal, Read};

use super::container::filters;
use super::container::save_to;
use super::failure::Failure;
use super::flags::Form::{Bool, List, Text};
use super::flags::{Command, Completes, MANY, Parsed, long, short};
use super::http::{Request, name};
use super::progress::{self, To};
use super::text::format::{self, Column, column, ellipsis, short_id};
use super::text::template::LABELS;
use super::text::units;
use super::text::value::Value;
use super::{Client, Ending, credentials, output};

/// The commands on images.
pub(crate) static COMMANDS: &[Command] = &[
    Command {
        names: &["images", "image ls", "image list"],
        arguments: "[OPTIONS] [REPOSITORY[:TAG]]",
        count: (0, 1),
        about: "List images",
        flags: &[&[
            short('a', "all", Bool, "Intermediate images too"),
            long("digests", Bool, "With their digests"),
            short('f', "filter", List("filter"), "Only those that match, as dangling=true"),
            long("format", Text("string"), "table, json, a template, or 'table TEMPLATE'"),
            long("no-trunc", Bool, "Do not shorten anything"),
            short('q', "quiet", Bool, "Only their ids"),
        ]],
        mixed: true,
        completes: Completes::Images,
        run: images,
    },
    Command {
        names: &["pull", "image pull"],
        arguments: "[OPTIONS] NAME[:TAG|@DIGEST]",
        count: (1, 1),
        about: "Fetch an image from a registry",
        flags: &[&[
            short('a', "all-tags", Bool, "Every tag of the repository"),
            long("disable-content-trust", Bool, "Has no effect: images are always checked against their digests"),
            long("platform", Text("string"), "The platform, as linux/arm64"),
            short('q', "quiet", Bool, "Only print the image's name"),
        ]],
        mixed: true,
        completes: Completes::Images,
        run: pull,
    },
    Command {
        names: &["push", "image push"],
        arguments: "[OPTIONS] NAME[:TAG]",
        count: (1, 1),
        about: "Send an image to a registry",
        flags: &[&[
            long("disable-content-trust", Bool, "Has no effect"),
            short('q', "quiet", Bool, "Do not show progress"),
        ]],
        mixed: true,
        completes: Completes::Images,
        run: push,
    },
    Command {
        names: &["image delta"],
        arguments: "[OPTIONS] SOURCE TARGET",
        count: (2, 2),
        about: "Make a delta between two images that are here, and push it beside the target",
        flags: &[&[
            short('t', "tag", Text("string"), "Push it to this repository instead of the target's"),
            short('q', "quiet", Bool, "Do not show progress"),
        ]],
        mixed: true,
        completes: Completes::Images,
        run: delta,
    },
    Command {
        names: &["rmi", "image rm", "image remove"],
        arguments: "[OPTIONS] IMAGE [IMAGE...]",
        count: (1, MANY),
        about: "Remove images, or only their names",
        flags: &[&[
            short('f', "force", Bool, "Although a stopped container uses it"),
            long("no-prune", Bool, "Keep parents without a name"),
        ]],
        mixed: true,
        completes: Completes::Images,
        run: rmi,
    },
    Command {
        names: &["tag", "image tag"],
        arguments: "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
        count: (2, 2),
        about: "Give an image a further name",
        flags: &[],
        mixed: true,
        completes: Completes::Images,
        run: tag,
    },
    Command {
        names: &["load", "image load"],
        arguments: "[OPTIONS]",
        count: (0, 0),
        about: "Load images from a tar archive",
        flags: &[&[
            short('i', "input", Text("string"), "From this file instead of standard input"),
            short('q', "quiet", Bool, "Do not show progress"),
        ]],
        mixed: true,
        completes: Completes::Nothing,
        run: load,
    },
    Command {
        names: &["save", "image save"],
        arguments: "[OPTIONS] IMAGE [IMAGE...]",
        count: (1, MANY),
        about: "Write images to a tar archive",
        flags: &[&[short('o', "output", Text("string"), "To this file instead of standard output")]],
        mixed: true,
        completes: Completes::Images,
        run: save,
    },
    Command {
        names: &["import", "image import"],
        arguments: "[OPTIONS] FILE|- [REPOSITORY[:TAG]]",
        count: (1, 2),
        about: "Make an image of a file system in a tar archive",
        flags: &[&[
            short('c', "change", List("list"), "A Dockerfile instruction for the image"),
            short('m', "message", Text("string"), "A note for its history"),
            long("platform", Text("string"), "Its platform"),
        ]],
        mixed: true,
        completes: Completes::Nothing,
        run: import,
    },
    Command {
        names: &["history", "image history"],
        arguments: "[OPTIONS] IMAGE",
        count: (1, 1),
        about: "Show how an image was made",
        flags: &[&[
            long("format", Text("string"), "table, json, a template, or 'table TEMPLATE'"),
            short('H', "human", Bool, "Sizes and times for people (default true)"),
            long("no-trunc", Bool, "Do not shorten anything"),
            short('q', "quiet", Bool, "Only ids"),
        ]],
        mixed: true,
        completes: Completes::Images,
        run: history,
    },
];

const COLUMNS: &[Column] = &[
    column("ID", "IMAGE ID"),
    column("Repository", "REPOSITORY"),
    column("Tag", "TAG"),
    column("Digest", "DIGEST"),
    column("CreatedSince", "CREATED"),
    column("CreatedAt", "CREATED AT"),
    column("Size", "SIZE"),
    column("Containers", "CONTAINERS"),
    column("SharedSize", "SHARED SIZE"),
    column("UniqueSize", "UNIQUE SIZE"),
    column("VirtualSize", "VIRTUAL SIZE"),
];

fn images(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let mut wanted = parsed.list("filter").to_vec();
    wanted.extend(parsed.arguments.first().map(|name| format!("reference={name}")));
    let request =
        Request::get("/images/json").query_if("all", parsed.is("all")).query_maybe("filters", filters(&wanted)?);
    let images = client.document(request)?;
    let (full, format) = (parsed.is("no-trunc"), parsed.text("format"));
    let digests = parsed.is("digests") || format.is_some_and(|format| format.contains(".Digest"));
    let rows: Vec<Value> = images.items().iter().flat_map(|image| rows(image, full, digests)).collect();
    if parsed.is("quiet") && format.is_none() {
        for row in &rows {
            output::print(&format!("{}\n", row.text_at(&["ID"])))?;
        }
        return Ok(Ending::SUCCESS);
    }
    let default: &[&str] = match parsed.is("digests") {
        true => &["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"],
        false => &["Repository", "Tag", "ID", "CreatedSince", "Size"],
    };
    format::print(format, COLUMNS, default, &rows)?;
    Ok(Ending::SUCCESS)
}

/// A row for each name of an image.
pub(super) fn rows(image: &Value, full: bool, digests: bool) -> Vec<Value> {
    let texts = |name: &str| -> Vec<&str> {
        image.at(&[name]).items().iter().map(Value::text).filter(|text| !text.starts_with("<none>")).collect()
    };
    let tags: Vec<(&str, &str)> = texts("RepoTags").iter().filter_map(|name| name.rsplit_once(':')).collect();
    let by_digest: Vec<(&str, &str)> = texts("RepoDigests").iter().filter_map(|name| name.split_once('@')).collect();
    let mut names: Vec<(String, String, String)> = Vec::new();
    let none = || "<none>".to_owned();
    for (repository, tag) in &tags {
        let own: Vec<&str> = by_digest.iter().filter(|(of, _)| of == repository).map(|(_, digest)| *digest).collect();
        if !digests || own.is_empty() {
            names.push(((*repository).to_owned(), (*tag).to_owned(), none()));
            continue;
        }
        names.extend(own.iter().map(|digest| ((*repository).to_owned(), (*tag).to_owned(), (*digest).to_owned())));
    }
    for (repository, digest) in &by_digest {
        if !tags.iter().any(|(tagged, _)| tagged == repository) {
            names.push(((*repository).to_owned(), none(), (*digest).to_owned()));
        }
    }
    if names.is_empty() {
        names.push((none(), none(), none()));
    }
    let id = image.text_at(&["Id"]);
    let created = image.at(&["Created"]).number();
    let size = units::size(image.at(&["Size"]).number());
    let counted = |name: &str| match image.at(&[name]).number() {
        -1 | 0 => "N/A".to_owned(),
        number if name == "Containers" => number.to_string(),
        number => units::size(number),
    };
    let labels = image.at(&["Labels"]).clone();
    let row = |(repository, tag, digest): (String, String, String)| {
        let fields: Vec<(&str, String)> = vec![
            ("ID", if full { id.to_owned() } else { short_id(id) }),
            ("Repository", repository),
            ("Tag", tag),
            ("Digest", digest),
            ("CreatedSince", if created > 0 { units::ago(created) } else { "N/A".to_owned() }),
            ("CreatedAt", units::go_time(created)),
            ("Size", size.clone()),
            ("Containers", counted("Containers")),
            ("SharedSize", counted("SharedSize")),
            ("UniqueSize", "N/A".to_owned()),
            ("VirtualSize", size.clone()),
        ];
        let mut members: Vec<(String, Value)> =
            fields.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
        members.push((LABELS.to_owned(), labels.clone()));
        Value::Object(members)
    };
    names.into_iter().map(row).collect()
}

/// Name and tag or digest; neither where there is none.
fn split(reference: &str) -> (&str, Option<&str>) {
    if let Some((name, digest)) = reference.split_once('@') {
        return (name, Some(digest));
    }
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (reference, None),
    }
}

/// A reference with `latest` where it says nothing else.
pub(super) fn with_tag(reference: &str) -> String {
    match split(reference) {
        (_, Some(_)) => reference.to_owned(),
        (name, None) => format!("{name}:latest"),
    }
}

/// With the registry and `library/`, as the end of a pull shows it.
fn canonical(reference: &str) -> String {
    let reference = with_tag(reference);
    match (credentials::registry(&reference), reference.split_once('/')) {
        ("docker.io", None) => format!("docker.io/library/{reference}"),
        ("docker.io", Some(_)) => format!("docker.io/{reference}"),
        _ => reference,
    }
}

/// Pulls one image.
///
/// # Errors
/// What the daemon says.
pub(super) fn pull_one(client: &Client, reference: &str, platform: Option<&str>, to: To) -> Result<(), Failure> {
    let whole = with_tag(reference);
    let (name, version) = split(&whole);
    let request = Request::post("/images/create")
        .query("fromImage", name)
        .query_maybe("tag", version)
        .query_maybe("platform", platform)
        .header("X-Registry-Auth", credentials::header(reference));
    progress::follow(client, request, to, |_| {})
}

fn pull(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let reference = parsed.arguments[0].as_str();
    let quiet = parsed.is("quiet");
    let to = if quiet { To::Nowhere } else { To::Stdout };
    if parsed.is("all-tags") {
        if split(reference).1.is_some() {
            return Err(Failure::refused("tag can't be used with --all-tags/-a"));
        }
        let request = Request::post("/images/create")
            .query("fromImage", reference)
            .query_maybe("platform", parsed.text("platform"))
            .header("X-Registry-Auth", credentials::header(reference));
        progress::follow(client, request, to, |_| {})?;
        return Ok(Ending::SUCCESS);
    }
    if split(reference).1.is_none() && !quiet {
        output::print("Using default tag: latest\n")?;
    }
    pull_one(client, reference, parsed.text("platform"), to)?;
    output::print(&format!("{}\n", canonical(reference)))?;
    Ok(Ending::SUCCESS)
}

fn push(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let reference = with_tag(&parsed.arguments[0]);
    let (repository, tag) = split(&reference);
    let to = if parsed.is("quiet") { To::Nowhere } else { To::Stdout };
    let request = Request::post(format!("/images/{}/push", name(repository)))
        .query_maybe("tag", tag)
        .header("X-Registry-Auth", credentials::header(&reference));
    progress::follow(client, request, to, |_| {})?;
    Ok(Ending::SUCCESS)
}

fn delta(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let (source, target) = (&parsed.arguments[0], &parsed.arguments[1]);
    let place = parsed.text("tag").unwrap_or(target);
    let to = if parsed.is("quiet") { To::Nowhere } else { To::Stdout };
    let request = Request::post("/images/delta")
        .query("src", source)
        .query("dest", target)
        .query_maybe("t", parsed.text("tag"))
        .header("X-Registry-Auth", credentials::header(place));
    progress::follow(client, request, to, |_| {})?;
    Ok(Ending::SUCCESS)
}

fn rmi(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let mut ending = Ending::SUCCESS;
    for image in &parsed.arguments {
        let request = Request::new("DELETE", format!("/images/{}", name(image)))
            .query_if("force", parsed.is("force"))
            .query_if("noprune", parsed.is("no-prune"));
        match client.document(request) {
            Ok(removed) => {
                for entry in removed.items() {
                    for what in ["Untagged", "Deleted"] {
                        if let Some(Value::Text(text)) = entry.get(what) {
                            output::print(&format!("{what}: {text}\n"))?;
                        }
                    }
                }
            }
            Err(failure @ Failure::NoDaemon { .. }) => return Err(failure),
            Err(failure) => {
                output::tell(&failure.to_string());
                if !(parsed.is("force") && failure.is_not_found()) {
                    ending = Ending::TOLD;
                }
            }
        }
    }
    Ok(ending)
}

fn tag(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let (repository, tag) = split(&parsed.arguments[1]);
    client.command(
        Request::post(format!("/images/{}/tag", name(&parsed.arguments[0])))
            .query("repo", repository)
            .query_maybe("tag", tag),
    )?;
    Ok(Ending::SUCCESS)
}

/// The archive that is named, or standard input unless that is a terminal.
fn archive(path: Option<&str>) -> Result<Box<dyn Read>, Failure> {
    match path {
        Some(path) => {
            let file = fs::File::open(path).map_err(Failure::io(format!("open {path}")))?;
            Ok(Box::new(file))
        }
        None if io::stdin().is_terminal() => Err(Failure::refused("requested load from stdin, but stdin is empty")),
        None => Ok(Box::new(io::stdin().lock())),
    }
}

fn load(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let mut archive = archive(parsed.text("input"))?;
    let quiet = parsed.is("quiet") || !io::stdout().is_terminal();
    let request = Request::post("/images/load")
        .query("quiet", if quiet { "1" } else { "0" })
        .reader("application/x-tar", &mut archive);
    progress::follow(client, request, To::Stdout, |_| {})?;
    Ok(Ending::SUCCESS)
}

fn save(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let mut request = Request::get("/images/get");
    for image in &parsed.arguments {
        request = request.query("names", image);
    }
    save_to(parsed.text("output"), || client.ask(request))?;
    Ok(Ending::SUCCESS)
}

fn import(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let source = parsed.arguments[0].as_str();
    let (repository, tag) = parsed.arguments.get(1).map_or((None, None), |name| {
        let (repository, tag) = split(name);
        (Some(repository), tag)
    });
    let from_url = source.starts_with("http://") || source.starts_with("https://");
    let mut request = Request::post("/images/create")
        .query("fromSrc", if from_url { source } else { "-" })
        .query_maybe("repo", repository)
        .query_maybe("tag", tag)
        .query_maybe("message", parsed.text("message"))
        .query_maybe("platform", parsed.text("platform"));
    for change in parsed.list("change") {
        request = request.query("changes", change);
    }
    let mut archive = if from_url { None } else { Some(archive((source != "-").then_some(source))?) };
    if let Some(archive) = &mut archive {
        request = request.reader("application/x-tar", archive);
    }
    progress::follow(client, request, To::Stdout, |_| {})?;
    Ok(Ending::SUCCESS)
}

const HISTORY: &[Column] = &[
    column("ID", "IMAGE"),
    column("CreatedSince", "CREATED"),
    column("CreatedAt", "CREATED AT"),
    column("CreatedBy", "CREATED BY"),
    column("Size", "SIZE"),
    column("Comment", "COMMENT"),
];

fn history(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let layers = client.document(Request::get(format!("/images/{}/history", name(&parsed.arguments[0]))))?;
    let full = parsed.is("no-trunc");
    let human = parsed.boolean("human").unwrap_or(true);
    let row = |layer: &Value| {
        let (id, created) = (layer.text_at(&["Id"]), layer.at(&["Created"]).number());
        let by = layer.text_at(&["CreatedBy"]).replace('\t', " ");
        let size = layer.at(&["Size"]).number();
        let fields: [(&str, String); 6] = [
            ("ID", if full || id == "<missing>" { id.to_owned() } else { short_id(id) }),
            ("CreatedSince", if created > 0 { units::ago(created) } else { "N/A".to_owned() }),
            ("CreatedAt", units::rfc3339(created, None)),
            ("CreatedBy", if full { by } else { ellipsis(&by, 45) }),
            ("Size", if human { units::size(size) } else { size.to_string() }),
            ("Comment", layer.text_at(&["Comment"]).to_owned()),
        ];
        Value::Object(fields.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect())
    };
    let rows: Vec<Value> = layers.items().iter().map(row).collect();
    if parsed.is("quiet") && parsed.text("format").is_none() {
        for row in &rows {
            output::print(&format!("{}\n", row.text_at(&["ID"])))?;
        }
        return Ok(Ending::SUCCESS);
    }
    let created = if human { "CreatedSince" } else { "CreatedAt" };
    format::print(parsed.text("format"), HISTORY, &["ID", created, "CreatedBy", "Size", "Comment"], &rows)?;
    Ok(Ending::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart_as_docker_does() {
        assert_eq!(split("busybox"), ("busybox", None));
        assert_eq!(split("host:5000/a"), ("host:5000/a", None));
        assert_eq!(split("host:5000/a:1"), ("host:5000/a", Some("1")));
        assert_eq!(split("a:1@sha256:00"), ("a:1", Some("sha256:00")));
        assert_eq!(canonical("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(canonical("u/a:1"), "docker.io/u/a:1");
        assert_eq!(canonical("localhost/a@sha256:00"), "localhost/a@sha256:00");
    }

    #[test]
    fn every_name_of_an_image_has_a_row() {
        let shown = |text: &str, digests: bool| -> Vec<String> {
            let image: Value = serde_json::from_str(text).expect("JSON");
            let text =
                |row: &Value| ["Repository", "Tag", "Digest"].map(|field| row.text_at(&[field]).to_owned()).join(" ");
            rows(&image, false, digests).iter().map(text).collect()
        };
        let image = r#"{"RepoTags":["h:5/a:1","h:5/a:2"],"RepoDigests":["h:5/a@sha256:0","b@sha256:1"]}"#;
        assert_eq!(shown(image, false), ["h:5/a 1 <none>", "h:5/a 2 <none>", "b <none> sha256:1"]);
        assert_eq!(shown(image, true), ["h:5/a 1 sha256:0", "h:5/a 2 sha256:0", "b <none> sha256:1"]);
        assert_eq!(shown(r#"{"RepoTags":[],"RepoDigests":[]}"#, false), ["<none> <none> <none>"]);
        assert_eq!(
            shown(r#"{"RepoTags":["<none>:<none>"],"RepoDigests":["<none>@<none>"]}"#, false),
            ["<none> <none> <none>"]
        );
    }
}
