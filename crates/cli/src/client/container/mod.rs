//! Containers: what makes them, what acts on them, what shows them.

mod control;
mod create;
mod create_flags;
mod exec;
mod list;
mod look;
mod ports;
mod run;

use serde_json::Value as Json;

use super::failure::Failure;
use super::flags::Form::{Bool, List, Number, Text};
use super::flags::{Command, Completes, Flag, MANY, long, short};
use super::http::{Request, name};
use super::text::value::Value;
use super::{Client, output};

pub(crate) use create::pairs;
pub(crate) use list::{port_text, row};
pub(crate) use look::save_to;

const DETACH_KEYS: Flag = long("detach-keys", Text("string"), "The keys that detach, as ctrl-p,ctrl-q");
const SIG_PROXY: Flag = long("sig-proxy", Bool, "Pass signals on to the container (default true)");
const STOP: &[Flag] = &[
    short('s', "signal", Text("string"), "The signal that asks it to end"),
    short('t', "timeout", Number, "Seconds that it has to end before it is killed; -1 for ever"),
];

/// The commands on containers.
pub(crate) static COMMANDS: &[Command] = &[
    Command {
        names: &["run", "container run"],
        arguments: "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        count: (1, MANY),
        about: "Create a container from an image and run it",
        flags: &[
            create_flags::LIMITS,
            create_flags::CREATE,
            &[short('d', "detach", Bool, "Run in the background and print the container's id"), DETACH_KEYS, SIG_PROXY],
        ],
        mixed: false,
        completes: Completes::FirstImage,
        run: run::run,
    },
    Command {
        names: &["exec", "container exec"],
        arguments: "[OPTIONS] CONTAINER COMMAND [ARG...]",
        count: (2, MANY),
        about: "Run a program in a running container",
        flags: &[&[
            short('d', "detach", Bool, "Run in the background"),
            DETACH_KEYS,
            short('e', "env", List("list"), "An environment variable: K=V, or K to pass ours on"),
            long("env-file", List("list"), "A file of environment variables"),
            short('i', "interactive", Bool, "Keep its standard input open"),
            long("privileged", Bool, "Give it all capabilities"),
            short('t', "tty", Bool, "Give it a terminal"),
            short('u', "user", Text("string"), "Its user, as name or number[:group]"),
            short('w', "workdir", Text("string"), "The folder in which it starts"),
        ]],
        mixed: false,
        completes: Completes::FirstRunning,
        run: exec::exec,
    },
    Command {
        names: &["ps", "container ls", "container list", "container ps"],
        arguments: "[OPTIONS]",
        count: (0, 0),
        about: "List containers",
        flags: &[&[
            short('a', "all", Bool, "Those that do not run too"),
            short('f', "filter", List("filter"), "Only those that match, as status=exited"),
            long("format", Text("string"), "table, json, a template, or 'table TEMPLATE'"),
            short('n', "last", Number, "The last n that were created"),
            short('l', "latest", Bool, "The last one that was created"),
            long("no-trunc", Bool, "Do not shorten anything"),
            short('q', "quiet", Bool, "Only their ids"),
            short('s', "size", Bool, "How much they wrote"),
        ]],
        mixed: true,
        completes: Completes::Nothing,
        run: list::ps,
    },
    Command {
        names: &["create", "container create"],
        arguments: "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        count: (1, MANY),
        about: "Create a container without starting it",
        flags: &[create_flags::LIMITS, create_flags::CREATE],
        mixed: false,
        completes: Completes::FirstImage,
        run: run::create,
    },
    Command {
        names: &["start", "container start"],
        arguments: "[OPTIONS] CONTAINER [CONTAINER...]",
        count: (1, MANY),
        about: "Start containers",
        flags: &[&[
            short('a', "attach", Bool, "Attach to its output and pass signals on"),
            DETACH_KEYS,
            short('i', "interactive", Bool, "Attach to its standard input"),
        ]],
        mixed: true,
        completes: Completes::Containers,
        run: run::start,
    },
    Command {
        names: &["stop", "container stop"],
        arguments: "[OPTIONS] CONTAINER [CONTAINER...]",
        count: (1, MANY),
        about: "Stop containers: ask them to end, then kill them",
        flags: &[STOP],
        mixed: true,
        completes: Completes::RunningContainers,
        run: control::stop,
    },
    Command {
        names: &["restart", "container restart"],
        arguments: "[OPTIONS] CONTAINER [CONTAINER...]",
        count: (1, MANY),
        about: "Stop containers and start them again",
        flags: &[STOP],
        mixed: true,
        completes: Completes::Containers,
        run: control::restart,
    },
    Command {
        names: &["kill", "container kill"],
        arguments: "[OPTIONS] CONTAINER [CONTAINER...]",
        count: (1, MANY),
        about: "Send a signal to containers, KILL unless another is named",
        flags: &[&[short('s', "signal", Text("string"), "The signal")]],
        mixed: true,
        completes: Completes::RunningContainers,
        run: control::kill,
    },
    Command {
        names: &["pause", "container pause"],
        arguments: "CONTAINER [CONTAINER...]",
        count: (1, MANY),
        about: "Freeze containers",
        flags: &[],
        mixed: true,
        completes: Completes::RunningContainers,
        run: control::pause,
    },
    Command {
        names: &["unpause", "container unpause"],
        arguments: "CONTAINER [CONTAINER...]",
        count: (1, MANY),
        about: "Let frozen containers go on",
        flags: &[],
        mixed: true,
        completes: Completes::Containers,
        run: control::unpause,
    },
    Command {
        names: &["rm", "container rm", "container remove"],
        arguments: "[OPTIONS] CONTAINER [CONTAINER...]",
        count: (1, MANY),
        about: "Remove containers",
        flags: &[&[
            short('f', "force", Bool, "Kill them first if they run"),
            short('l', "link", Bool, "Remove the link of this name instead"),
            short('v', "volumes", Bool, "Remove their anonymous volumes too"),
        ]],
        mixed: true,
        completes: Completes::Containers,
        run: control::rm,
    },
    Command {
        names: &["rename", "container rename"],
        arguments: "CONTAINER NEW_NAME",
        count: (2, 2),
        about: "Give a container another name",
        flags: &[],
        mixed: true,
        completes: Completes::Containers,
        run: control::rename,
    },
    Command {
        names: &["update", "container update"],
        arguments: "[OPTIONS] CONTAINER [CONTAINER...]",
        count: (1, MANY),
        about: "Change the limits of containers",
        flags: &[create_flags::LIMITS],
        mixed: true,
        completes: Completes::Containers,
        run: control::update,
    },
    Command {
        names: &["wait", "container wait"],
        arguments: "CONTAINER [CONTAINER...]",
        count: (1, MANY),
        about: "Wait until containers end, and print their exit codes",
        flags: &[],
        mixed: true,
        completes: Completes::Containers,
        run: control::wait,
    },
    Command {
        names: &["logs", "container logs"],
        arguments: "[OPTIONS] CONTAINER",
        count: (1, 1),
        about: "Show what a container wrote",
        flags: &[&[
            long("details", Bool, "With the labels and variables that its log driver keeps"),
            short('f', "follow", Bool, "Go on as it writes"),
            long("since", Text("string"), "From this time on, or from so long ago, as 10m"),
            short('n', "tail", Text("string"), "Only the last so many lines"),
            short('t', "timestamps", Bool, "With the time of each line"),
            long("until", Text("string"), "Up to this time"),
        ]],
        mixed: true,
        completes: Completes::Containers,
        run: look::logs,
    },
    Command {
        names: &["attach", "container attach"],
        arguments: "[OPTIONS] CONTAINER",
        count: (1, 1),
        about: "Attach to a running container's input and output",
        flags: &[&[DETACH_KEYS, long("no-stdin", Bool, "Only to its output"), SIG_PROXY]],
        mixed: true,
        completes: Completes::RunningContainers,
        run: run::attach,
    },
    Command {
        names: &["port", "container port"],
        arguments: "CONTAINER [PRIVATE_PORT[/PROTO]]",
        count: (1, 2),
        about: "Show where a container's ports are published",
        flags: &[],
        mixed: true,
        completes: Completes::RunningContainers,
        run: look::port,
    },
    Command {
        names: &["top", "container top"],
        arguments: "CONTAINER [ps OPTIONS]",
        count: (1, MANY),
        about: "Show a container's processes",
        flags: &[],
        mixed: false,
        completes: Completes::FirstRunning,
        run: look::top,
    },
    Command {
        names: &["stats", "container stats"],
        arguments: "[OPTIONS] [CONTAINER...]",
        count: (0, MANY),
        about: "Show what containers use, once",
        flags: &[&[
            short('a', "all", Bool, "Those that do not run too"),
            long("format", Text("string"), "table, json, a template, or 'table TEMPLATE'"),
            long("no-stream", Bool, "Once: the only way that exists so far"),
            long("no-trunc", Bool, "Do not shorten anything"),
        ]],
        mixed: true,
        completes: Completes::RunningContainers,
        run: look::stats,
    },
    Command {
        names: &["diff", "container diff"],
        arguments: "CONTAINER",
        count: (1, 1),
        about: "Show what a container changed in its file system",
        flags: &[],
        mixed: true,
        completes: Completes::Containers,
        run: look::diff,
    },
    Command {
        names: &["export", "container export"],
        arguments: "[OPTIONS] CONTAINER",
        count: (1, 1),
        about: "Write a container's file system as a tar archive",
        flags: &[&[short('o', "output", Text("string"), "To this file instead of standard output")]],
        mixed: true,
        completes: Completes::Containers,
        run: look::export,
    },
];

/// What `docker inspect` knows of a container.
pub(crate) fn inspect(client: &Client, container: &str) -> Result<Value, Failure> {
    client.document(Request::get(format!("/containers/{}/json", name(container))))
}

/// Says what the daemon wants to have said.
fn warn(answer: &Value) {
    for warning in answer.at(&["Warnings"]).items() {
        output::tell(&format!("WARNING: {}", warning.text()));
    }
}

/// Filters as the API wants them: every key with its values.
pub(crate) fn filters(given: &[String]) -> Result<Option<String>, Failure> {
    let mut all = serde_json::Map::new();
    for filter in given {
        let (key, value) = filter.split_once('=').ok_or_else(|| {
            Failure::refused(format!("invalid argument {filter:?} for \"-f, --filter\" flag: expected key=value"))
        })?;
        let values = all.entry(key.trim().to_ascii_lowercase()).or_insert_with(|| Json::Object(serde_json::Map::new()));
        values[value.trim()] = true.into();
    }
    Ok((!all.is_empty()).then(|| Json::Object(all).to_string()))
}

/// Labels, as `key=value` or a key alone.
pub(crate) fn labels(given: &[String]) -> Json {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        (key.to_owned(), Json::from(value))
    };
    Json::Object(given.iter().map(pair).collect())
}

/// The order of names as people expect it: numbers within them count as numbers.
pub(crate) fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let number = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, others) = (number(left), number(right));
        let ordering = if digits > 0 && others > 0 {
            let (a, b) = (left[..digits].trim_start_matches('0'), right[..others].trim_start_matches('0'));
            let ordering = a.len().cmp(&b.len()).then_with(|| a.cmp(b));
            (left, right) = (&left[digits..], &right[others..]);
            ordering
        } else {
            let (mut a, mut b) = (left.chars(), right.chars());
            let ordering = match (a.next(), b.next()) {
                (None, None) => return std::cmp::Ordering::Equal,
                (a, b) => a.cmp(&b),
            };
            (left, right) = (a.as_str(), b.as_str());
            ordering
        };
        if ordering.is_ne() {
            return ordering;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_that_people_expect() {
        let mut names = ["web10", "web9", "db", "web", "web09a", "a-2", "a-11"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a-2", "a-11", "db", "web", "web9", "web09a", "web10"]);
    }

    #[test]
    fn filters_are_sent_as_the_api_wants_them() {
        let given = ["status=exited", "label=a=b", "Status=created"].map(str::to_owned);
        let sent = filters(&given).expect("well formed");
        assert_eq!(sent.as_deref(), Some(r#"{"label":{"a=b":true},"status":{"created":true,"exited":true}}"#));
        assert_eq!(filters(&[]).expect("none"), None);
        assert!(filters(&["x".to_owned()]).is_err());
    }
}
