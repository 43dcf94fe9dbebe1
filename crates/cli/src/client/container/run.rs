//! `run`, `create`, `start`, `attach`: attached before the start, waited for before the start, so that no byte and no exit code
//! is lost.

use std::fs;
use std::io::Write;

use super::super::failure::Failure;
use super::super::flags::Parsed;
use super::super::http::{Answer, Request, name};
use super::super::terminal::keys::Keys;
use super::super::terminal::session::{self, End, Streams};
use super::super::terminal::{self, signals};
use super::super::{Client, Ending, image, output, progress};
use super::create::{self, Wanted};
use super::{inspect, warn};

pub(super) fn create(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let made = create::wanted(parsed, false).and_then(|wanted| make(client, parsed, wanted.body));
    let id = made.map_err(|failure| failure.before_start(&parsed.command))?;
    output::print(&format!("{id}\n"))?;
    Ok(Ending::SUCCESS)
}

pub(super) fn run(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let before = |failure: Failure| failure.before_start(&parsed.command);
    let detached = parsed.is("detach");
    let mut wanted = create::wanted(parsed, detached).map_err(before)?;
    if wanted.tty && wanted.attach[0] && !terminal::is_input() {
        return Err(Failure::refused("the input device is not a TTY"));
    }
    let keys = Keys::parse(parsed.text("detach-keys").unwrap_or_default()).map_err(before)?;
    if wanted.tty
        && let Some((rows, columns)) = terminal::size()
    {
        wanted.body["HostConfig"]["ConsoleSize"] = serde_json::json!([rows, columns]);
    }
    let Wanted { body, tty, stdin, attach } = wanted;
    let id = make(client, parsed, body).map_err(before)?;
    let start = || client.command(Request::post(format!("/containers/{id}/start")));
    if detached {
        start().map_err(|failure| failure.of_start(&parsed.command))?;
        output::print(&format!("{id}\n"))?;
        return Ok(Ending::SUCCESS);
    }
    let streams = Streams { stdin: attach[0] && stdin, stdout: attach[1], stderr: attach[2], tty, keys };
    let connection =
        if attach.contains(&true) { Some(take_over(client, &id, &streams, parsed).map_err(before)?) } else { None };
    let condition = if parsed.is("rm") { "removed" } else { "next-exit" };
    let ended =
        client.ask(Request::post(format!("/containers/{id}/wait")).query("condition", condition)).map_err(before)?;
    if !tty && parsed.boolean("sig-proxy").unwrap_or(true) {
        signals::pass_on(client, &id);
    }
    start().map_err(|failure| failure.of_start(&parsed.command))?;
    if tty {
        signals::follow_size(client, format!("/containers/{id}"));
    }
    if let Some(connection) = connection
        && session::run(connection, streams)? == End::Detached
    {
        return Ok(Ending::SUCCESS);
    }
    exit_code(ended, &parsed.command)
}

/// What `wait` answers.
fn exit_code(ended: Answer, command: &str) -> Result<Ending, Failure> {
    let answer = ended.document()?;
    match answer.text_at(&["Error", "Message"]) {
        "" => Ok(Ending::of(answer.at(&["StatusCode"]).number())),
        message => Err(Failure::refused(message).before_start(command)),
    }
}

fn take_over(client: &Client, container: &str, streams: &Streams, parsed: &Parsed) -> Result<Answer, Failure> {
    client.take_over(
        Request::post(format!("/containers/{}/attach", name(container)))
            .query("stream", "1")
            .query_if("stdin", streams.stdin)
            .query_if("stdout", streams.stdout)
            .query_if("stderr", streams.stderr)
            .query_maybe("detachKeys", parsed.text("detach-keys")),
    )
}

/// Creates a container, pulling its image if it must; answers its id.
fn make(client: &Client, parsed: &Parsed, body: serde_json::Value) -> Result<String, Failure> {
    let reference = parsed.arguments.first().map(String::as_str).unwrap_or_default();
    let platform = parsed.text("platform");
    let to = if parsed.is("quiet") { progress::To::Nowhere } else { progress::To::Stderr };
    let policy = parsed.text("pull").unwrap_or("missing");
    let id_file = parsed.text("cidfile").map(IdFile::create).transpose()?;
    match policy {
        "always" => image::pull_one(client, reference, platform, to)?,
        "missing" | "never" => {}
        _ => {
            return Err(Failure::refused(format!(
                "invalid pull option: {policy:?}: must be one of \"always\", \"missing\" or \"never\""
            )));
        }
    }
    let ask = || {
        client.document(
            Request::post("/containers/create")
                .query_maybe("name", parsed.text("name"))
                .query_maybe("platform", platform)
                .json(&body),
        )
    };
    let created = match ask() {
        // A daemon says 404 here for an image and for an unknown volume driver; a pull tells the one from the other.
        Err(failure)
            if failure.is_not_found() && policy == "missing" && failure.to_string().contains("No such image") =>
        {
            if to == progress::To::Stderr {
                output::tell(&format!("Unable to find image '{}' locally", image::with_tag(reference)));
            }
            image::pull_one(client, reference, platform, to)?;
            ask()
        }
        created => created,
    }?;
    warn(&created);
    let id = created.text_at(&["Id"]).to_owned();
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Failure::Answer { reason: "no id of the new container".to_owned() });
    }
    if let Some(file) = id_file {
        file.keep(&id)?;
    }
    Ok(id)
}

/// The file of `--cidfile`: it must not exist, and goes away again if nothing was created.
struct IdFile {
    path: String,
    file: Option<fs::File>,
}

impl IdFile {
    fn create(path: &str) -> Result<IdFile, Failure> {
        match fs::OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => Ok(IdFile { path: path.to_owned(), file: Some(file) }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(Failure::refused(format!(
                "container ID file found, make sure the other container isn't running or delete {path}"
            ))),
            Err(error) => Err(Failure::Io { action: format!("create {path}"), source: error }),
        }
    }

    fn keep(mut self, id: &str) -> Result<(), Failure> {
        match self.file.take() {
            Some(mut file) => file.write_all(id.as_bytes()).map_err(Failure::io(format!("write {}", self.path))),
            None => Ok(()),
        }
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(super) fn start(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let begin = |container: &str| client.command(Request::post(format!("/containers/{}/start", name(container))));
    let stdin = parsed.is("interactive");
    if !parsed.is("attach") && !stdin {
        return super::super::each(&parsed.arguments, begin);
    }
    let [container] = parsed.arguments.as_slice() else {
        return Err(Failure::refused("you cannot start and attach multiple containers at once"));
    };
    let found = inspect(client, container)?;
    let id = found.text_at(&["Id"]).to_owned();
    let tty = found.at(&["Config", "Tty"]).is_true();
    let stdin = stdin && found.at(&["Config", "OpenStdin"]).is_true();
    if tty && stdin && !terminal::is_input() {
        return Err(Failure::refused("the input device is not a TTY"));
    }
    let keys = Keys::parse(parsed.text("detach-keys").unwrap_or_default())?;
    let streams = Streams { stdin, stdout: true, stderr: true, tty, keys };
    let connection = take_over(client, &id, &streams, parsed)?;
    let condition = if found.at(&["HostConfig", "AutoRemove"]).is_true() { "removed" } else { "next-exit" };
    let ended = client.ask(Request::post(format!("/containers/{id}/wait")).query("condition", condition))?;
    if !tty {
        signals::pass_on(client, &id);
    }
    begin(&id)?;
    if tty {
        signals::follow_size(client, format!("/containers/{id}"));
    }
    match session::run(connection, streams)? {
        End::Detached => Ok(Ending::SUCCESS),
        End::Closed => exit_code(ended, &parsed.command),
    }
}

pub(super) fn attach(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let container = parsed.arguments.first().map(String::as_str).unwrap_or_default();
    let found = inspect(client, container)?;
    let state = |name: &str| found.at(&["State", name]).is_true();
    for (refused, reason) in [
        (!state("Running"), "cannot attach to a stopped container, start it first"),
        (state("Paused"), "cannot attach to a paused container, unpause it first"),
        (state("Restarting"), "cannot attach to a restarting container, wait until it is running"),
    ] {
        if refused {
            return Err(Failure::refused(reason));
        }
    }
    let tty = found.at(&["Config", "Tty"]).is_true();
    let stdin = found.at(&["Config", "OpenStdin"]).is_true() && !parsed.is("no-stdin");
    if tty && stdin && !terminal::is_input() {
        return Err(Failure::refused("the input device is not a TTY"));
    }
    let id = found.text_at(&["Id"]).to_owned();
    let keys = Keys::parse(parsed.text("detach-keys").unwrap_or_default())?;
    let streams = Streams { stdin, stdout: true, stderr: true, tty, keys };
    let ended = client.ask(Request::post(format!("/containers/{id}/wait")))?;
    let connection = take_over(client, &id, &streams, parsed)?;
    if tty {
        signals::follow_size(client, format!("/containers/{id}"));
    } else if parsed.boolean("sig-proxy").unwrap_or(true) {
        signals::pass_on(client, &id);
    }
    match session::run(connection, streams)? {
        End::Detached => {
            output::tell("read escape sequence");
            Ok(Ending::SUCCESS)
        }
        End::Closed => exit_code(ended, &parsed.command),
    }
}
