//! Help, from the table of commands.

use super::failure::Failure;
use super::flags::Command;
use super::{Ending, output, program, table};

/// What `--help` alone shows.
pub(crate) fn overview() -> Result<Ending, Failure> {
    let program = program();
    let mut text = format!(
        "Usage:  {program} [OPTIONS] COMMAND\n\nA container engine for devices, and its client.\n\nThe engine:\n{}{}{}{}\nCommands:\n",
        line("daemon", "Run the engine, as root; 'daemon --help' lists its options"),
        line("fsck", "Check a store, as root; 'fsck --help' lists its options"),
        line("completion", "Print a completion script for bash, zsh or fish"),
        line("help", "Show the help of a command"),
    );
    for command in table::all() {
        let Some(name) = command.names.iter().find(|name| !name.contains(' ') && **name != "completion") else {
            continue;
        };
        text.push_str(&line(name, command.about));
    }
    text.push_str("\nCommands by noun:\n");
    let mut groups: Vec<&str> = table::all()
        .flat_map(|command| command.names)
        .filter_map(|name| name.split_once(' '))
        .map(|(group, _)| group)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    for group in groups {
        text.push_str(&line(group, &format!("'{program} {group}' lists what can be done with it")));
    }
    text.push_str(&format!(
        "\nOptions:\n  -H, --host string     The daemon's socket: unix://PATH or tcp://HOST:PORT\n      --config string   Folder of config.json with the registries' credentials\n  -v, --version         Show the version of this program\n\nWithout -H the daemon is taken from BALEEN_HOST, then DOCKER_HOST, then unix:///run/docker.sock.\nRun '{program} COMMAND --help' for more information on a command.\n"
    ));
    output::print(&text)?;
    Ok(Ending::SUCCESS)
}

fn line(name: &str, about: &str) -> String {
    format!("  {name:<11} {about}\n")
}

/// What a noun alone shows.
pub(crate) fn group(group: &str) -> Result<Ending, Failure> {
    let program = program();
    let mut text = format!("Usage:  {program} {group} COMMAND\n\nCommands:\n");
    for command in table::all() {
        let own = command.names.iter().filter_map(|name| name.split_once(' ')).find(|(noun, _)| *noun == group);
        if let Some((_, verb)) = own {
            text.push_str(&line(verb, command.about));
        }
    }
    text.push_str(&format!("\nRun '{program} {group} COMMAND --help' for more information on a command.\n"));
    output::print(&text)?;
    Ok(Ending::SUCCESS)
}

/// `help WORD...`
pub(crate) fn of(words: &[String]) -> Result<Ending, Failure> {
    match table::find(words) {
        _ if words.is_empty() => overview(),
        table::Found::Command { command, name, .. } => self::command(command, &name),
        table::Found::Group(group) => self::group(&group),
        table::Found::Nothing => {
            Err(Failure::refused(format!("{}: unknown help topic: {}", program(), words.join(" "))))
        }
    }
}

/// A command's help.
pub(crate) fn command(command: &Command, name: &str) -> Result<Ending, Failure> {
    let program = program();
    let mut text = format!("Usage:  {program} {name} {}\n\n{}\n", command.arguments, command.about);
    if command.names.len() > 1 {
        let names: Vec<String> = command.names.iter().map(|name| format!("{program} {name}")).collect();
        text.push_str(&format!("\nAliases:\n  {}\n", names.join(", ")));
    }
    let mut flags: Vec<_> = command.flags().collect();
    flags.sort_by_key(|flag| flag.long);
    let heads: Vec<String> = flags
        .iter()
        .map(|flag| {
            let short = flag.short.map_or_else(|| "    ".to_owned(), |short| format!("-{short}, "));
            format!("  {short}--{} {}", flag.long, flag.form.word()).trim_end().to_owned()
        })
        .collect();
    let width = heads.iter().map(String::len).max().unwrap_or_default() + 3;
    if !flags.is_empty() {
        text.push_str("\nOptions:\n");
    }
    for (head, flag) in heads.iter().zip(&flags) {
        text.push_str(&format!("{head:<width$}{}\n", flag.help));
    }
    output::print(&text)?;
    Ok(Ending::SUCCESS)
}
