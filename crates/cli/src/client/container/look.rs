//! What shows something of a container.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};

use super::super::failure::Failure;
use super::super::flags::Parsed;
use super::super::http::{Request, name};
use super::super::terminal::session;
use super::super::text::format::{self, Column, column, ellipsis, short_id};
use super::super::text::units;
use super::super::text::value::Value;
use super::super::{Client, Ending, output};
use super::{inspect, port_text};

pub(super) fn logs(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let container = &parsed.arguments[0];
    let moment = |flag: &str| match parsed.text(flag) {
        Some(text) => units::moment(text).map(Some).ok_or_else(|| {
            Failure::refused(format!("invalid value for {flag:?}: {text:?} is no time and no duration"))
        }),
        None => Ok(None),
    };
    let (since, until) = (moment("since")?, moment("until")?);
    let found = inspect(client, container)?;
    let request = Request::get(format!("/containers/{}/logs", name(found.text_at(&["Id"]))))
        .query("stdout", "1")
        .query("stderr", "1")
        .query_if("follow", parsed.is("follow"))
        .query_if("timestamps", parsed.is("timestamps"))
        .query_if("details", parsed.is("details"))
        .query_maybe("since", since)
        .query_maybe("until", until)
        .query("tail", parsed.text("tail").unwrap_or("all"));
    let answer = client.ask(request)?;
    if found.at(&["Config", "Tty"]).is_true() {
        copy(answer, &mut io::stdout().lock())?;
    } else {
        session::frames(answer, |kind, bytes| match kind {
            2 => output::write(&mut io::stderr().lock(), bytes),
            _ => output::write(&mut io::stdout().lock(), bytes),
        })?;
    }
    Ok(Ending::SUCCESS)
}

/// Copies to the end.
pub(crate) fn copy(mut from: impl Read, to: &mut dyn Write) -> Result<(), Failure> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failure::Io { action: "read the daemon's answer".to_owned(), source: error }),
        };
        output::write(to, &buffer[..length])?;
    }
}

/// Writes an archive to the file that is named, or to standard output unless that is a terminal. A file appears under its name
/// only when it is whole.
pub(crate) fn save_to(
    path: Option<&str>,
    request: impl FnOnce() -> Result<super::super::http::Answer, Failure>,
) -> Result<(), Failure> {
    let Some(path) = path else {
        if io::stdout().is_terminal() {
            return Err(Failure::refused("cowardly refusing to save to a terminal; use the -o flag or redirect"));
        }
        return copy(request()?, &mut io::stdout().lock());
    };
    let answer = request()?;
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        // A device or a pipe: there is nothing to rename over.
        let mut file = fs::OpenOptions::new().write(true).open(path).map_err(Failure::io(format!("write {path}")))?;
        return copy(answer, &mut file);
    }
    let part = format!("{path}.part-{}", std::process::id());
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&part)
        .map_err(Failure::io(format!("create {part}")))
        .and_then(|mut file| {
            copy(answer, &mut file)?;
            file.sync_all().map_err(Failure::io(format!("write {part}")))?;
            fs::rename(&part, path).map_err(Failure::io(format!("write {path}")))
        });
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

pub(super) fn export(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let path = format!("/containers/{}/export", name(&parsed.arguments[0]));
    save_to(parsed.text("output"), || client.ask(Request::get(path)))?;
    Ok(Ending::SUCCESS)
}

pub(super) fn port(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let container = &parsed.arguments[0];
    let found = inspect(client, container)?;
    let mut ports = found.at(&["NetworkSettings", "Ports"]).members().to_vec();
    let number = |port: &str| port.split('/').next().and_then(|port| port.parse::<u32>().ok()).unwrap_or_default();
    ports.sort_by(|a, b| number(&a.0).cmp(&number(&b.0)).then_with(|| a.0.cmp(&b.0)));
    let place = |binding: &Value| port_text(binding.text_at(&["HostIp"]), binding.text_at(&["HostPort"]));
    let Some(asked) = parsed.arguments.get(1) else {
        for (port, bindings) in &ports {
            for binding in bindings.items() {
                output::print(&format!("{port} -> {}\n", place(binding)))?;
            }
        }
        return Ok(Ending::SUCCESS);
    };
    let wanted = if asked.contains('/') { asked.clone() } else { format!("{asked}/tcp") };
    let bindings = ports.iter().find(|(port, _)| *port == wanted).map_or(&[][..], |(_, bindings)| bindings.items());
    if bindings.is_empty() {
        return Err(Failure::refused(format!("Error: No public port '{asked}' published for {container}")));
    }
    for binding in bindings {
        output::print(&format!("{}\n", place(binding)))?;
    }
    Ok(Ending::SUCCESS)
}

pub(super) fn top(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let (container, options) =
        parsed.arguments.split_first().ok_or_else(|| Failure::refused("a container is needed"))?;
    let options = (!options.is_empty()).then(|| options.join(" "));
    let answer = client
        .document(Request::get(format!("/containers/{}/top", name(container))).query_maybe("ps_args", options))?;
    let line = |cells: &Value| cells.items().iter().map(Value::text).collect::<Vec<_>>().join("\t");
    let mut lines = vec![line(answer.at(&["Titles"]))];
    lines.extend(answer.at(&["Processes"]).items().iter().map(line));
    // Wider apart than other tables: twenty characters at least.
    output::print(&format::align_to(&lines, 20))?;
    Ok(Ending::SUCCESS)
}

pub(super) fn diff(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let changes = client.document(Request::get(format!("/containers/{}/changes", name(&parsed.arguments[0]))))?;
    for change in changes.items() {
        let kind = match change.at(&["Kind"]).number() {
            0 => 'C',
            1 => 'A',
            _ => 'D',
        };
        output::print(&format!("{kind} {}\n", change.text_at(&["Path"])))?;
    }
    Ok(Ending::SUCCESS)
}

const STATS: &[Column] = &[
    column("ID", "CONTAINER ID"),
    column("Container", "CONTAINER"),
    column("Name", "NAME"),
    column("CPUPerc", "CPU %"),
    column("MemUsage", "MEM USAGE / LIMIT"),
    column("MemPerc", "MEM %"),
    column("NetIO", "NET I/O"),
    column("BlockIO", "BLOCK I/O"),
    column("PIDs", "PIDS"),
];

pub(super) fn stats(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let mut containers = parsed.arguments.clone();
    if containers.is_empty() {
        let listed = client.document(Request::get("/containers/json").query_if("all", parsed.is("all")))?;
        containers = listed.items().iter().map(|container| container.text_at(&["Id"]).to_owned()).collect();
    }
    let full = parsed.is("no-trunc");
    let mut rows = Vec::new();
    for container in &containers {
        let path = format!("/containers/{}/stats", name(container));
        let stats = client.document(Request::get(path).query("stream", "0"))?;
        rows.push(stats_row(container, &stats, full));
    }
    let default = ["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"];
    format::print(parsed.text("format"), STATS, &default, &rows)?;
    Ok(Ending::SUCCESS)
}

fn stats_row(container: &str, stats: &Value, full: bool) -> Value {
    let number = |path: &[&str]| stats.at(path).number();
    let id = stats.text_at(&["id"]);
    let used =
        number(&["cpu_stats", "cpu_usage", "total_usage"]) - number(&["precpu_stats", "cpu_usage", "total_usage"]);
    let passed = number(&["cpu_stats", "system_cpu_usage"]) - number(&["precpu_stats", "system_cpu_usage"]);
    let cpus = number(&["cpu_stats", "online_cpus"]).max(1);
    let cpu = if used > 0 && passed > 0 { used as f64 / passed as f64 * cpus as f64 * 100.0 } else { 0.0 };
    // What the kernel would give back at once does not count.
    let cache = match number(&["memory_stats", "stats", "inactive_file"]) {
        0 => number(&["memory_stats", "stats", "total_inactive_file"]),
        cache => cache,
    };
    let usage = number(&["memory_stats", "usage"]);
    let memory = if cache < usage { usage - cache } else { usage };
    let limit = number(&["memory_stats", "limit"]);
    let share = if limit > 0 { memory as f64 / limit as f64 * 100.0 } else { 0.0 };
    let networks = stats.at(&["networks"]).members();
    let sum = |field: &str| networks.iter().map(|(_, network)| network.at(&[field]).number()).sum::<i64>();
    let moved = |operation: &str| {
        let entries = stats.at(&["blkio_stats", "io_service_bytes_recursive"]).items();
        let of_kind = entries.iter().filter(|entry| entry.text_at(&["op"]).eq_ignore_ascii_case(operation));
        units::size(of_kind.map(|entry| entry.at(&["value"]).number()).sum())
    };
    let fields: [(&str, String); 9] = [
        ("ID", if full { id.to_owned() } else { short_id(id) }),
        ("Container", if full { container.to_owned() } else { ellipsis(container, 12) }),
        ("Name", stats.text_at(&["name"]).trim_start_matches('/').to_owned()),
        ("CPUPerc", format!("{cpu:.2}%")),
        ("MemUsage", format!("{} / {}", units::memory(memory), units::memory(limit))),
        ("MemPerc", format!("{share:.2}%")),
        ("NetIO", format!("{} / {}", units::size(sum("rx_bytes")), units::size(sum("tx_bytes")))),
        ("BlockIO", format!("{} / {}", moved("read"), moved("write"))),
        ("PIDs", number(&["pids_stats", "current"]).to_string()),
    ];
    Value::Object(fields.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect())
}
