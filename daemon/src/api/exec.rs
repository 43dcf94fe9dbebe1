//! Exec: create, start, resize, inspect.

use baleen_engine::ExecRequest;
use serde::Deserialize;
use serde_json::json;

use super::attach::{DetachKeys, pump};
use super::containers::{MULTIPLEXED, RAW, terminal_size};
use super::input::{self, Value};
use super::{Answer, Call};
use crate::http::Reply;

/// Body of a create.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CreateBody {
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
    tty: bool,
    cmd: Option<Vec<String>>,
    env: Vec<String>,
    user: String,
    working_dir: String,
    privileged: bool,
    detach_keys: String,
    console_size: [u32; 2],
}

/// Body of a start.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StartBody {
    detach: bool,
    tty: bool,
    console_size: Option<[u32; 2]>,
}

/// `POST /containers/{id}/exec`.
pub(crate) async fn create(name: &str, mut call: Call) -> Answer {
    let mut body = call.json().await?.unwrap_or(Value::Null);
    body.listed("Cmd");
    let body: CreateBody = input::decode(body)?;
    if !body.detach_keys.is_empty() {
        DetachKeys::parse(Some(&body.detach_keys))?;
    }
    let request = ExecRequest {
        command: body.cmd.unwrap_or_default(),
        env: body.env,
        user: body.user,
        working_dir: body.working_dir,
        privileged: body.privileged,
        tty: body.tty,
        attach_stdin: body.attach_stdin,
        attach_stdout: body.attach_stdout,
        attach_stderr: body.attach_stderr,
        detach_keys: body.detach_keys,
        console_size: body.console_size,
    };
    let id = call.engine().create_exec(name, request)?;
    super::json(201, &json!({ "Id": id }))
}

/// `POST /exec/{id}/start`.
pub(crate) async fn start(id: &str, mut call: Call) -> Answer {
    let body: StartBody = input::decode(call.json().await?.unwrap_or(Value::Null))?;
    let details = call.engine().exec(id)?;
    let keys = Some(details.request.detach_keys.as_str()).filter(|keys| !keys.is_empty());
    let keys = details.request.tty.then(|| DetachKeys::parse(keys)).transpose()?;
    let Some(mut attachment) = call.engine().start_exec(id, body.detach, body.console_size).await? else {
        return Ok(Reply::empty(200));
    };
    // Whatever the exec has, the framing is what the start asks for, as in Docker.
    attachment.tty = body.tty;
    let multiplexed = !body.tty && call.asked.since(42) && call.head.wants_upgrade();
    let (api, id) = (call.api.clone(), id.to_owned());
    Ok(Reply::hijack(if multiplexed { MULTIPLEXED } else { RAW }, move |hijacked| async move {
        tokio::select! {
            detached = pump(hijacked, attachment, keys) => {
                if detached {
                    api.engine.exec_detached(&id);
                }
            }
            () = api.ending() => {}
        }
    }))
}

/// `POST /exec/{id}/resize`.
pub(crate) async fn resize(id: &str, call: &Call) -> Answer {
    let [height, width] = terminal_size(&call.query)?;
    call.engine().resize_exec(id, height, width).await?;
    Ok(Reply::empty(200))
}

/// `GET /exec/{id}/json`.
pub(crate) fn inspect(id: &str, call: &Call) -> Answer {
    let details = call.engine().exec(id)?;
    let request = details.request;
    let (entrypoint, arguments) = match request.command.split_first() {
        Some((program, arguments)) => (program.as_str(), arguments),
        None => ("", &[][..]),
    };
    super::json(
        200,
        &json!({
            "ID": details.id,
            "Running": details.running,
            "ExitCode": details.exit_code,
            "ProcessConfig": {
                "tty": request.tty, "entrypoint": entrypoint, "arguments": arguments, "privileged": request.privileged,
                "user": request.user,
            },
            "OpenStdin": request.attach_stdin,
            "OpenStderr": request.attach_stderr,
            "OpenStdout": request.attach_stdout,
            "CanRemove": false,
            "ContainerID": details.container_id,
            "DetachKeys": DetachKeys::shown(&request.detach_keys),
            "Pid": details.pid,
        }),
    )
}
