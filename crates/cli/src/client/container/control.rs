//! What acts on containers that exist.

use serde_json::Map;

use super::super::failure::Failure;
use super::super::flags::Parsed;
use super::super::http::{Request, name};
use super::super::{Client, Ending, each, output};
use super::{create, warn};

fn path(container: &str, verb: &str) -> String {
    format!("/containers/{}/{verb}", name(container))
}

pub(super) fn stop(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    end(client, parsed, "stop")
}

pub(super) fn restart(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    end(client, parsed, "restart")
}

fn end(client: &Client, parsed: &Parsed, verb: &str) -> Result<Ending, Failure> {
    each(&parsed.arguments, |container| {
        client.command(
            Request::post(path(container, verb))
                .query_maybe("t", parsed.text("timeout"))
                .query_maybe("signal", parsed.text("signal")),
        )
    })
}

pub(super) fn kill(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let signal = parsed.text("signal").unwrap_or("KILL");
    each(&parsed.arguments, |container| client.command(Request::post(path(container, "kill")).query("signal", signal)))
}

pub(super) fn pause(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    each(&parsed.arguments, |container| client.command(Request::post(path(container, "pause"))))
}

pub(super) fn unpause(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    each(&parsed.arguments, |container| client.command(Request::post(path(container, "unpause"))))
}

pub(super) fn rm(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let force = parsed.is("force");
    each(&parsed.arguments, |container| {
        let request = Request::new("DELETE", format!("/containers/{}", name(container)))
            .query_if("force", force)
            .query_if("v", parsed.is("volumes"))
            .query_if("link", parsed.is("link"));
        match client.command(request) {
            // What is to be gone by force and is gone is no failure, but it is told.
            Err(failure) if force && failure.is_not_found() => {
                output::tell(&failure.to_string());
                Ok(())
            }
            ended => ended,
        }
    })
}

pub(super) fn rename(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let [container, new] = parsed.arguments.as_slice() else { return Ok(Ending::TOLD) };
    client.command(Request::post(path(container, "rename")).query("name", new))?;
    Ok(Ending::SUCCESS)
}

pub(super) fn update(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let mut body = Map::new();
    create::limits(parsed, &mut body)?;
    if body.is_empty() {
        return Err(Failure::refused("you must provide one or more flags when using this command"));
    }
    let body = body.into();
    each(&parsed.arguments, |container| {
        client.document(Request::post(path(container, "update")).json(&body)).map(|answer| warn(&answer))
    })
}

pub(super) fn wait(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let mut ending = Ending::SUCCESS;
    for container in &parsed.arguments {
        match client.document(Request::post(path(container, "wait"))) {
            Ok(answer) => output::print(&format!("{}\n", answer.at(&["StatusCode"]).number()))?,
            Err(failure @ Failure::NoDaemon { .. }) => return Err(failure),
            Err(failure) => {
                output::tell(&failure.to_string());
                ending = Ending::TOLD;
            }
        }
    }
    Ok(ending)
}
