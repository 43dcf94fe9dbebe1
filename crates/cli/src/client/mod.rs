//! The client: docker's daily commands over the API.
//!
//! In reading order: [`flags`] is what a command is and how its line is read; `table` lists the commands, `help` and `completion`
//! show them; `http` talks to the daemon, `text` writes what people read, `terminal` is a person at a keyboard; the rest are the
//! commands by noun.
//!
//! L1  The client knows the API and nothing else of the engine: it works with any daemon that speaks it, and any client works
//!     with ours.
//! L2  Exit codes are docker's: 1 for a refusal, 125 for a bad flag and for a container that was not created, 126 and 127 for a
//!     program that cannot be run or found, otherwise the container's own.
//! L3  What is printed for programs (ids, tables, JSON, logs) goes to standard output, everything for people to standard error.
//!
//! Touches: the daemon's socket, the terminal, the files that are named on the command line, docker's `config.json` for
//! credentials (read only).

mod completion;
mod container;
pub(crate) mod credentials;
mod failure;
mod flags;
mod help;
mod http;
mod image;
mod inspect;
mod network;
mod output;
mod progress;
mod prune;
mod system;
mod table;
mod terminal;
pub(crate) mod text;
mod volume;

use std::ffi::OsString;
use std::io::BufReader;
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

use failure::Failure;
use http::{Answer, Host, Request};
use text::value::Value;

/// The socket that is tried when none is named.
const DEFAULT_HOST: &str = "unix:///run/docker.sock";

/// How a command ended that did not fail: the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending(u8);

impl Ending {
    pub(crate) const SUCCESS: Ending = Ending(0);
    /// Failures were told one by one.
    pub(crate) const TOLD: Ending = Ending(1);

    /// A container's exit code, as a process can give it back.
    pub(crate) fn of(code: i64) -> Ending {
        Ending((code & 0xff) as u8)
    }
}

/// A daemon to ask.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    host: Host,
}

impl Client {
    /// Asks, and answers what came if its status is good.
    pub(crate) fn ask(&self, request: Request<'_>) -> Result<Answer, Failure> {
        Answer::to(&self.host, request, false)?.good()
    }

    /// Asks for a document.
    pub(crate) fn document(&self, request: Request<'_>) -> Result<Value, Failure> {
        self.ask(request)?.document()
    }

    /// Asks for something to happen; what is said about it does not matter.
    pub(crate) fn command(&self, request: Request<'_>) -> Result<(), Failure> {
        self.ask(request).map(drop)
    }

    /// Asks for a stream of messages.
    pub(crate) fn messages(&self, request: Request<'_>) -> Result<BufReader<Answer>, Failure> {
        self.ask(request).map(BufReader::new)
    }

    /// Asks for the connection itself.
    pub(crate) fn take_over(&self, request: Request<'_>) -> Result<Answer, Failure> {
        let answer = Answer::to(&self.host, request, true)?.good()?;
        match answer.status {
            101 | 200 => Ok(answer),
            status => Err(Failure::Answer { reason: format!("status {status} to an upgrade") }),
        }
    }
}

/// Does something for each name and prints the name; tells each failure and goes on.
pub(crate) fn each(names: &[String], mut action: impl FnMut(&str) -> Result<(), Failure>) -> Result<Ending, Failure> {
    let mut ending = Ending::SUCCESS;
    for name in names {
        match action(name).and_then(|()| output::print(&format!("{name}\n"))) {
            Ok(()) => {}
            Err(Failure::OutputClosed) => return Err(Failure::OutputClosed),
            Err(failure @ Failure::NoDaemon { .. }) => return Err(failure),
            Err(failure) => {
                output::tell(&failure.to_string());
                ending = Ending::TOLD;
            }
        }
    }
    Ok(ending)
}

static PROGRAM: OnceLock<String> = OnceLock::new();

/// The name by which this program was called, for messages.
pub(crate) fn program() -> &'static str {
    PROGRAM.get().map_or("baleen", String::as_str)
}

/// Runs the client with the arguments after the program's name.
pub(crate) fn run(program: &Path, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let name = program.file_name().and_then(|name| name.to_str()).filter(|name| !name.is_empty());
    let _ = PROGRAM.set(name.unwrap_or("baleen").to_owned());
    let words: Result<Vec<String>, OsString> = arguments.map(OsString::into_string).collect();
    let ended = match words {
        Ok(words) => dispatch(words),
        Err(word) => Err(Failure::refused(format!("argument {word:?} is not UTF-8"))),
    };
    match ended {
        Ok(Ending(code)) => ExitCode::from(code),
        Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(failure) => {
            output::tell(&failure.to_string());
            ExitCode::from(failure.code())
        }
    }
}

/// What stands before the command.
#[derive(Debug, Default)]
struct Globals {
    host: Option<String>,
}

fn dispatch(words: Vec<String>) -> Result<Ending, Failure> {
    let mut words = words.into_iter().peekable();
    let mut globals = Globals::default();
    while let Some(word) = words.next_if(|word| word.starts_with('-') && word != "-") {
        match global(&word, &mut words, &mut globals)? {
            Global::Read => {}
            Global::Help => return help::overview(),
            Global::Version => {
                output::print(&format!("baleen version {}\n", env!("CARGO_PKG_VERSION")))?;
                return Ok(Ending::SUCCESS);
            }
        }
    }
    let words: Vec<String> = words.collect();
    if words.first().map(String::as_str) == Some(completion::ENTRY) {
        return completion::answer(host(&globals).map(|host| Client { host }).ok(), &words[1..]);
    }
    match table::find(&words) {
        table::Found::Command { command, name, rest } => {
            let parsed = command.parse(&name, rest)?;
            if parsed.help {
                return help::command(command, &name);
            }
            (command.run)(&Client { host: host(&globals)? }, &parsed)
        }
        table::Found::Group(group) => help::group(&group),
        table::Found::Nothing if words.is_empty() || words[0] == "help" => help::of(words.get(1..).unwrap_or_default()),
        table::Found::Nothing => {
            let unknown = words.iter().take(2).take_while(|word| !word.starts_with('-')).cloned().collect::<Vec<_>>();
            let unknown = if table::is_group(&words[0]) { unknown.join(" ") } else { words[0].clone() };
            let program = program();
            Err(Failure::refused(format!(
                "{program}: unknown command: {program} {unknown}\n\nRun '{program} --help' for more information"
            )))
        }
    }
}

enum Global {
    Read,
    Help,
    Version,
}

fn global(word: &str, rest: &mut impl Iterator<Item = String>, globals: &mut Globals) -> Result<Global, Failure> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None if word.starts_with("-H") && word.len() > 2 => ("-H", Some(word[2..].to_owned())),
        None => (word, None),
    };
    let mut value = || value.clone().or_else(|| rest.next());
    let missing = || Failure::refused(format!("flag needs an argument: {name}"));
    match name {
        "-h" | "--help" => return Ok(Global::Help),
        "-v" | "--version" => return Ok(Global::Version),
        "-H" | "--host" => globals.host = Some(value().ok_or_else(missing)?),
        // Known to scripts; without a meaning here.
        "-D" | "--debug" => {}
        "-l" | "--log-level" => drop(value().ok_or_else(missing)?),
        "--config" => credentials::set_folder(value().ok_or_else(missing)?),
        "-c" | "--context" => match value().ok_or_else(missing)?.as_str() {
            "default" => {}
            _ => return Err(Failure::refused("contexts are not supported; name the daemon with -H or DOCKER_HOST")),
        },
        "--tls" | "--tlsverify" | "--tlscacert" | "--tlscert" | "--tlskey" => {
            return Err(Failure::refused(
                "TLS to a daemon is not implemented yet; use its unix socket, or a tunnel: ssh -L /tmp/b.sock:/run/docker.sock HOST",
            ));
        }
        _ => {
            let program = program();
            return Err(Failure::BadFlags {
                reason: format!("unknown flag: {name}\nSee '{program} --help'"),
                command: String::new(),
                usage: "[OPTIONS] COMMAND",
            });
        }
    }
    Ok(Global::Read)
}

fn host(globals: &Globals) -> Result<Host, Failure> {
    let named = |variable: &str| std::env::var(variable).ok().filter(|value| !value.is_empty());
    let text = globals.host.clone().or_else(|| named("BALEEN_HOST")).or_else(|| named("DOCKER_HOST"));
    let host = Host::parse(text.as_deref().unwrap_or(DEFAULT_HOST))?;
    if matches!(host, Host::Tcp(_)) && named("DOCKER_TLS_VERIFY").is_some() {
        return Err(Failure::refused(
            "DOCKER_TLS_VERIFY is set, and TLS to a daemon is not implemented yet; use its unix socket or a tunnel",
        ));
    }
    Ok(host)
}
