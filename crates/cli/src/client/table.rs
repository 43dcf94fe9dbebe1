//! Every command, in the order in which help shows them.

use super::flags::Command;
use super::{container, image, inspect, network, prune, system, volume};

/// The commands by noun.
pub(crate) static TABLES: &[&[Command]] = &[
    container::COMMANDS,
    image::COMMANDS,
    volume::COMMANDS,
    network::COMMANDS,
    inspect::COMMANDS,
    prune::COMMANDS,
    system::COMMANDS,
];

/// Every command.
pub(crate) fn all() -> impl Iterator<Item = &'static Command> {
    TABLES.iter().flat_map(|table| table.iter())
}

/// What the first words of a command line name.
pub(crate) enum Found {
    /// With the name as it was written, and the words after it.
    Command {
        command: &'static Command,
        name: String,
        rest: Vec<String>,
    },
    /// A noun alone, or with a wish for help.
    Group(String),
    Nothing,
}

/// Finds the command that a line begins with.
pub(crate) fn find(words: &[String]) -> Found {
    for length in [2, 1] {
        let Some(head) = words.get(..length) else { continue };
        let name = head.join(" ");
        if let Some(command) = all().find(|command| command.names.contains(&name.as_str())) {
            return Found::Command { command, name, rest: words[length..].to_vec() };
        }
    }
    match words {
        [group] if is_group(group) => Found::Group(group.clone()),
        [group, flag] if is_group(group) && matches!(flag.as_str(), "--help" | "-h") => Found::Group(group.clone()),
        _ => Found::Nothing,
    }
}

/// Whether a word is a noun that commands begin with.
pub(crate) fn is_group(word: &str) -> bool {
    all().any(|command| command.names.iter().any(|name| name.split_once(' ').is_some_and(|(group, _)| group == word)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_and_every_flag_of_a_command_is_its_own() {
        let mut names = BTreeSet::new();
        for command in all() {
            for name in command.names {
                assert!(names.insert(*name), "{name} is there twice");
            }
            let mut flags = BTreeSet::new();
            for flag in command.flags() {
                assert!(flags.insert(flag.long.to_owned()), "{}: --{}", command.names[0], flag.long);
                assert!(
                    flag.short.is_none_or(|short| flags.insert(short.to_string())),
                    "{}: -{:?}",
                    command.names[0],
                    flag.short
                );
                assert!(!flag.help.is_empty() && !flag.help.ends_with('.'), "{}: --{}", command.names[0], flag.long);
            }
            assert!(command.count.0 <= command.count.1 && !command.about.is_empty(), "{}", command.names[0]);
        }
        assert!(names.len() > 60);
    }
}
