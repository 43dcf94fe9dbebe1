//! The engine as a whole.

use std::io::{self, Write};

use super::container::{self, filters};
use super::failure::Failure;
use super::flags::Form::{Bool, List, Text};
use super::flags::{Command, Completes, Parsed, long, short};
use super::http::{Answer, Request};
use super::text::format::{self, Column, column, harmless};
use super::text::template::Template;
use super::text::units;
use super::text::value::Value;
use super::{Client, Ending, completion, image, inspect, output, volume};

/// The newest API that this client was written for.
const API_VERSION: &str = "1.44";

/// The commands on the engine.
pub(crate) static COMMANDS: &[Command] = &[
    Command {
        names: &["info", "system info"],
        arguments: "[OPTIONS]",
        count: (0, 0),
        about: "Show what the engine is and has",
        flags: &[&[inspect::FORMAT]],
        mixed: true,
        completes: Completes::Nothing,
        run: info,
    },
    Command {
        names: &["version"],
        arguments: "[OPTIONS]",
        count: (0, 0),
        about: "Show the versions of client and engine",
        flags: &[&[inspect::FORMAT]],
        mixed: true,
        completes: Completes::Nothing,
        run: version,
    },
    Command {
        names: &["events", "system events"],
        arguments: "[OPTIONS]",
        count: (0, 0),
        about: "Show what happens, as it happens",
        flags: &[&[
            short('f', "filter", List("filter"), "Only what matches, as type=container"),
            long("format", Text("string"), "json, or a template"),
            long("since", Text("string"), "From this time on, or from so long ago, as 10m"),
            long("until", Text("string"), "Up to this time"),
        ]],
        mixed: true,
        completes: Completes::Nothing,
        run: events,
    },
    Command {
        names: &["system df"],
        arguments: "[OPTIONS]",
        count: (0, 0),
        about: "Show what takes how much room",
        flags: &[&[
            long("format", Text("string"), "table, json, a template, or 'table TEMPLATE'"),
            short('v', "verbose", Bool, "Each image, container and volume"),
        ]],
        mixed: true,
        completes: Completes::Nothing,
        run: df,
    },
    Command {
        names: &["completion"],
        arguments: "bash|zsh|fish",
        count: (1, 1),
        about: "Print a completion script",
        flags: &[],
        mixed: true,
        completes: Completes::Nothing,
        run: completion::script,
    },
];

/// Prints an object by a template, or as JSON; answers whether a format was given at all.
fn formatted(parsed: &Parsed, object: &Value) -> Result<bool, Failure> {
    let text = match parsed.text("format").unwrap_or_default() {
        "" => return Ok(false),
        "json" => object.compact(),
        format => Template::parse(format)?.object(object)?,
    };
    output::print(&(text + "\n"))?;
    Ok(true)
}

fn version(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let ours: [(&str, &str); 6] = [
        ("Version", env!("CARGO_PKG_VERSION")),
        ("ApiVersion", API_VERSION),
        ("DefaultAPIVersion", API_VERSION),
        ("Os", "linux"),
        ("Arch", architecture),
        ("Context", "default"),
    ];
    let ours = Value::Object(ours.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect());
    // Our own half is told even if nobody answers.
    let theirs = client.document(Request::get("/version"));
    let server = theirs.as_ref().map_or(Value::Null, Value::clone);
    let object = Value::Object(vec![("Client".to_owned(), ours), ("Server".to_owned(), server)]);
    if parsed.text("format").is_none_or(str::is_empty) {
        let mut text = format!(
            "Client: baleen\n Version:           {}\n API version:       {API_VERSION}\n OS/Arch:           linux/{architecture}\n",
            env!("CARGO_PKG_VERSION")
        );
        if let Ok(server) = &theirs {
            text.push_str(&server_text(server));
        }
        output::print(&text)?;
        return theirs.map(|_| Ending::SUCCESS);
    }
    formatted(parsed, &object)?;
    theirs.map(|_| Ending::SUCCESS)
}

fn server_text(server: &Value) -> String {
    let platform = server.text_at(&["Platform", "Name"]);
    let mut text = format!("\nServer:{}{}\n", if platform.is_empty() { "" } else { " " }, harmless(platform));
    let components = server.at(&["Components"]).items();
    if components.is_empty() {
        text.push_str(&format!(" Version:           {}\n", harmless(server.text_at(&["Version"]))));
    }
    for component in components {
        text.push_str(&format!(" {}:\n", harmless(component.text_at(&["Name"]))));
        let detail = |name: &str| harmless(component.text_at(&["Details", name]));
        let mut line = |name: &str, value: String| {
            if !value.trim_matches('/').is_empty() {
                text.push_str(&format!("  {:<17} {value}\n", format!("{name}:")));
            }
        };
        line("Version", harmless(component.text_at(&["Version"])));
        let api = detail("ApiVersion");
        if !api.is_empty() {
            line("API version", format!("{api} (minimum version {})", detail("MinAPIVersion")));
        }
        line("Go version", detail("GoVersion"));
        line("Git commit", detail("GitCommit"));
        line("Built", detail("BuildTime"));
        line("OS/Arch", format!("{}/{}", detail("Os"), detail("Arch")));
        line("Experimental", detail("Experimental"));
    }
    text
}

fn info(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let info = client.document(Request::get("/info"))?;
    if formatted(parsed, &info)? {
        return Ok(Ending::SUCCESS);
    }
    let text = |name: &str| harmless(info.text_at(&[name]));
    let number = |name: &str| info.at(&[name]).number();
    let yes = |name: &str| info.at(&[name]).is_true();
    let list = |path: &[&str]| {
        let items: Vec<String> = info.at(path).items().iter().map(|item| harmless(item.text())).collect();
        items.join(" ")
    };
    let mut out = format!(
        "Client: baleen\n Version:    {}\n Debug Mode: false\n\nServer:\n Containers: {}\n  Running: {}\n  Paused: {}\n  Stopped: {}\n Images: {}\n",
        env!("CARGO_PKG_VERSION"),
        number("Containers"),
        number("ContainersRunning"),
        number("ContainersPaused"),
        number("ContainersStopped"),
        number("Images")
    );
    let mut line = |depth: usize, name: &str, value: &str| {
        if !value.is_empty() {
            out.push_str(&format!("{}{name}: {value}\n", " ".repeat(depth)));
        }
    };
    line(1, "Server Version", &text("ServerVersion"));
    line(1, "Storage Driver", &text("Driver"));
    for pair in info.at(&["DriverStatus"]).items() {
        if let [key, value] = pair.items() {
            line(2, &harmless(key.text()), &harmless(value.text()));
        }
    }
    line(1, "Logging Driver", &text("LoggingDriver"));
    line(1, "Cgroup Driver", &text("CgroupDriver"));
    line(1, "Cgroup Version", &text("CgroupVersion"));
    line(1, "Plugins", " ");
    line(2, "Volume", &list(&["Plugins", "Volume"]));
    line(2, "Network", &list(&["Plugins", "Network"]));
    line(2, "Log", &list(&["Plugins", "Log"]));
    line(1, "Swarm", &harmless(info.text_at(&["Swarm", "LocalNodeState"])));
    let mut runtimes: Vec<String> = info.at(&["Runtimes"]).members().iter().map(|(name, _)| harmless(name)).collect();
    runtimes.sort();
    line(1, "Runtimes", &runtimes.join(" "));
    line(1, "Default Runtime", &text("DefaultRuntime"));
    line(1, "Init Binary", &text("InitBinary"));
    let security = info.at(&["SecurityOptions"]).items();
    if !security.is_empty() {
        line(1, "Security Options", " ");
    }
    let mut options = String::new();
    for option in security {
        for (index, part) in option.text().split(',').enumerate() {
            let (key, value) = part.split_once('=').unwrap_or(("name", part));
            match (index, key) {
                (0, "name") => options.push_str(&format!("  {}\n", harmless(value))),
                (_, "profile") => options.push_str(&format!("   Profile: {}\n", harmless(value))),
                (_, key) => options.push_str(&format!("   {}: {}\n", harmless(key), harmless(value))),
            }
        }
    }
    out.push_str(&options);
    let mut line = |depth: usize, name: &str, value: &str| {
        if !value.is_empty() {
            out.push_str(&format!("{}{name}: {value}\n", " ".repeat(depth)));
        }
    };
    line(1, "Kernel Version", &text("KernelVersion"));
    line(1, "Operating System", &text("OperatingSystem"));
    line(1, "OSType", &text("OSType"));
    line(1, "Architecture", &text("Architecture"));
    line(1, "CPUs", &number("NCPU").to_string());
    line(1, "Total Memory", &units::memory(number("MemTotal")));
    line(1, "Name", &text("Name"));
    line(1, "ID", &text("ID"));
    line(1, "Docker Root Dir", &text("DockerRootDir"));
    line(1, "Debug Mode", &yes("Debug").to_string());
    line(1, "HTTP Proxy", &text("HttpProxy"));
    line(1, "HTTPS Proxy", &text("HttpsProxy"));
    line(1, "No Proxy", &text("NoProxy"));
    let labels = info.at(&["Labels"]).items();
    if !labels.is_empty() {
        line(1, "Labels", " ");
    }
    let under = |items: &[Value]| items.iter().map(|item| format!("  {}\n", harmless(item.text()))).collect::<String>();
    out.push_str(&under(labels));
    out.push_str(&format!(" Experimental: {}\n", yes("ExperimentalBuild")));
    let registries = info.at(&["RegistryConfig"]);
    let mut insecure: Vec<Value> = registries
        .at(&["IndexConfigs"])
        .members()
        .iter()
        .filter(|(_, registry)| registry.at(&["Secure"]) == &Value::Bool(false))
        .map(|(name, _)| Value::Text(name.clone()))
        .collect();
    insecure.extend_from_slice(registries.at(&["InsecureRegistryCIDRs"]).items());
    for (head, items) in
        [("Insecure Registries", insecure.as_slice()), ("Registry Mirrors", registries.at(&["Mirrors"]).items())]
    {
        if !items.is_empty() {
            out.push_str(&format!(" {head}:\n{}", under(items)));
        }
    }
    out.push_str(&format!(" Live Restore Enabled: {}\n", yes("LiveRestoreEnabled")));
    // Where a line has only a head, nothing follows the colon.
    let out = out.replace(":  \n", ":\n");
    output::print(&(out + "\n"))?;
    for warning in info.at(&["Warnings"]).items() {
        output::tell(&harmless(warning.text()));
    }
    Ok(Ending::SUCCESS)
}

fn events(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let moment = |flag: &str| match parsed.text(flag) {
        Some(text) => units::moment(text).map(Some).ok_or_else(|| {
            Failure::refused(format!("invalid value for {flag:?}: {text:?} is no time and no duration"))
        }),
        None => Ok(None),
    };
    let template = match parsed.text("format").filter(|format| !format.is_empty() && *format != "json") {
        Some(format) => Some(Template::parse(format)?),
        None => None,
    };
    let json = parsed.text("format") == Some("json");
    let request = Request::get("/events")
        .query_maybe("since", moment("since")?)
        .query_maybe("until", moment("until")?)
        .query_maybe("filters", filters(parsed.list("filter"))?);
    let mut messages = client.messages(request)?;
    while let Some(event) = Answer::message(&mut messages)? {
        let line = match &template {
            Some(template) => template.object(&event)?,
            None if json => event.compact(),
            None => event_text(&event),
        };
        output::write(&mut io::stdout().lock() as &mut dyn Write, format!("{line}\n").as_bytes())?;
    }
    Ok(Ending::SUCCESS)
}

fn event_text(event: &Value) -> String {
    let nanoseconds = event.at(&["timeNano"]).number();
    let (seconds, rest) = match nanoseconds {
        0 => (event.at(&["time"]).number(), 0),
        nanoseconds => (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000) as u32),
    };
    let mut text = format!(
        "{} {} {} {}",
        units::rfc3339(seconds, Some(rest)),
        event.text_at(&["Type"]),
        event.text_at(&["Action"]),
        event.text_at(&["Actor", "ID"])
    );
    let mut attributes = event.at(&["Actor", "Attributes"]).members().to_vec();
    attributes.sort_by(|a, b| a.0.cmp(&b.0));
    if !attributes.is_empty() {
        let shown: Vec<String> = attributes.iter().map(|(key, value)| format!("{key}={}", value.text())).collect();
        text.push_str(&format!(" ({})", shown.join(", ")));
    }
    harmless(&text)
}

const DF: &[Column] = &[
    column("Type", "TYPE"),
    column("TotalCount", "TOTAL"),
    column("Active", "ACTIVE"),
    column("Size", "SIZE"),
    column("Reclaimable", "RECLAIMABLE"),
];

fn df(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let usage = client.document(Request::get("/system/df"))?;
    if parsed.is("verbose") {
        return verbose(&usage);
    }
    let images = usage.at(&["Images"]).items();
    let containers = usage.at(&["Containers"]).items();
    let volumes = usage.at(&["Volumes"]).items();
    let number = |value: &Value, path: &[&str]| value.at(path).number();
    let layers = number(&usage, &["LayersSize"]);
    let used_images: Vec<&Value> = images.iter().filter(|image| number(image, &["Containers"]) > 0).collect();
    let held: i64 = used_images
        .iter()
        .filter(|image| number(image, &["Size"]) >= 0 && number(image, &["SharedSize"]) >= 0)
        .map(|image| number(image, &["Size"]) - number(image, &["SharedSize"]))
        .sum();
    let runs = |container: &Value| matches!(container.text_at(&["State"]), "running" | "paused" | "restarting");
    let written: i64 = containers.iter().map(|container| number(container, &["SizeRw"])).sum();
    let idle: i64 =
        containers.iter().filter(|container| !runs(container)).map(|container| number(container, &["SizeRw"])).sum();
    let size_of = |volume: &&Value| number(volume, &["UsageData", "Size"]).max(0);
    let unused: Vec<&Value> = volumes.iter().filter(|volume| number(volume, &["UsageData", "RefCount"]) == 0).collect();
    let stored: i64 = volumes.iter().map(|volume| size_of(&volume)).sum();
    let free: i64 = unused.iter().map(size_of).sum();
    let share = |free: i64, all: i64| match all {
        0 => units::size_of_four_digits(free),
        all => format!("{} ({}%)", units::size_of_four_digits(free), free * 100 / all),
    };
    let row = |kind: &str, total: usize, active: usize, size: i64, free: String| {
        let fields: [(&str, String); 5] = [
            ("Active", active.to_string()),
            ("Reclaimable", free),
            ("Size", units::size_of_four_digits(size)),
            ("TotalCount", total.to_string()),
            ("Type", kind.to_owned()),
        ];
        Value::Object(fields.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect())
    };
    let rows = [
        row("Images", images.len(), used_images.len(), layers, share(layers - held, layers)),
        row(
            "Containers",
            containers.len(),
            containers.iter().filter(|container| runs(container)).count(),
            written,
            share(idle, written),
        ),
        row("Local Volumes", volumes.len(), volumes.len() - unused.len(), stored, share(free, stored)),
        row("Build Cache", 0, 0, 0, "0B".to_owned()),
    ];
    format::print(parsed.text("format"), DF, &["Type", "TotalCount", "Active", "Size", "Reclaimable"], &rows)?;
    Ok(Ending::SUCCESS)
}

/// The head of a table that never has a row: there is no build cache.
const CACHE: &str = "CACHE ID\tCACHE TYPE\tSIZE\tCREATED\tLAST USED\tUSAGE\tSHARED";

fn verbose(usage: &Value) -> Result<Ending, Failure> {
    let mut lines = vec!["REPOSITORY\tTAG\tIMAGE ID\tCREATED\tSIZE\tSHARED SIZE\tUNIQUE SIZE\tCONTAINERS".to_owned()];
    for found in usage.at(&["Images"]).items() {
        let (size, shared) = (found.at(&["Size"]).number(), found.at(&["SharedSize"]).number());
        let known = |size: i64| if shared < 0 { "N/A".to_owned() } else { units::size(size) };
        // One name is enough to know it by.
        if let Some(row) = image::rows(found, false, false).first() {
            let cells = ["Repository", "Tag", "ID", "CreatedSince", "Size"].map(|name| row.text_at(&[name])).join("\t");
            let containers = found.at(&["Containers"]).number().max(0);
            lines.push(format!("{cells}\t{}\t{}\t{containers}", known(shared), known(size - shared)));
        }
    }
    output::print(&format!("Images space usage:\n\n{}", format::align(&lines)))?;
    let mut lines = vec!["CONTAINER ID\tIMAGE\tCOMMAND\tLOCAL VOLUMES\tSIZE\tCREATED\tSTATUS\tNAMES".to_owned()];
    for found in usage.at(&["Containers"]).items() {
        let row = container::row(found, false);
        let written = units::size(found.at(&["SizeRw"]).number());
        let cells = ["ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names"];
        lines.push(cells.map(|name| if name == "Size" { &written } else { row.text_at(&[name]) }).join("\t"));
    }
    output::print(&format!("\nContainers space usage:\n\n{}", format::align(&lines)))?;
    let mut lines = vec!["VOLUME NAME\tLINKS\tSIZE".to_owned()];
    for found in usage.at(&["Volumes"]).items() {
        let row = volume::row(found);
        lines.push(["Name", "Links", "Size"].map(|name| row.text_at(&[name])).join("\t"));
    }
    output::print(&format!(
        "\nLocal Volumes space usage:\n\n{}\nBuild cache usage: 0B\n\n{}",
        format::align(&lines),
        format::align(&[CACHE.to_owned()])
    ))?;
    Ok(Ending::SUCCESS)
}
