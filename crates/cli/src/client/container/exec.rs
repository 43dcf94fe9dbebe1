//! `exec`.

use std::time::{Duration, Instant};

use serde_json::json;

use super::super::failure::Failure;
use super::super::flags::Parsed;
use super::super::http::{Request, name};
use super::super::terminal::keys::Keys;
use super::super::terminal::session::{self, End, Streams};
use super::super::terminal::{self, signals};
use super::super::{Client, Ending};
use super::create;

/// How long a program may go on once its output has ended, before the client no longer waits for its exit code.
const END_TIME: Duration = Duration::from_secs(10);

pub(super) fn exec(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let (container, command) =
        parsed.arguments.split_first().ok_or_else(|| Failure::refused("a container is needed"))?;
    let (detached, tty) = (parsed.is("detach"), parsed.is("tty"));
    let stdin = parsed.is("interactive") && !detached;
    if tty && stdin && !terminal::is_input() {
        return Err(Failure::refused("the input device is not a TTY"));
    }
    let keys = Keys::parse(parsed.text("detach-keys").unwrap_or_default())?;
    let mut body = json!({
        "AttachStdin": stdin,
        "AttachStdout": !detached,
        "AttachStderr": !detached,
        "Tty": tty,
        "Cmd": command,
        "Env": create::environment(parsed)?,
        "Privileged": parsed.is("privileged"),
        "User": parsed.text("user").unwrap_or_default(),
        "WorkingDir": parsed.text("workdir").unwrap_or_default(),
    });
    if let Some(keys) = parsed.text("detach-keys") {
        body["DetachKeys"] = keys.into();
    }
    let size = if tty { terminal::size() } else { None };
    if let Some((rows, columns)) = size {
        body["ConsoleSize"] = json!([rows, columns]);
    }
    let made = client.document(Request::post(format!("/containers/{}/exec", name(container))).json(&body))?;
    let id = made.text_at(&["Id"]).to_owned();
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Failure::Answer { reason: "no id of the new exec".to_owned() });
    }
    let mut start = json!({ "Detach": detached, "Tty": tty });
    if let Some((rows, columns)) = size {
        start["ConsoleSize"] = json!([rows, columns]);
    }
    let request = Request::post(format!("/exec/{id}/start")).json(&start);
    if detached {
        client.command(request)?;
        return Ok(Ending::SUCCESS);
    }
    let connection = client.take_over(request)?;
    if tty {
        signals::follow_size(client, format!("/exec/{id}"));
    }
    match session::run(connection, Streams { stdin, stdout: true, stderr: true, tty, keys })? {
        End::Detached => Ok(Ending::SUCCESS),
        End::Closed => {
            // Its output can end before its end is known.
            let asked = Instant::now();
            loop {
                let found = client.document(Request::get(format!("/exec/{id}/json")))?;
                if !found.at(&["Running"]).is_true() || asked.elapsed() > END_TIME {
                    return Ok(Ending::of(found.at(&["ExitCode"]).number()));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
