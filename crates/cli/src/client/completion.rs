//! Completion for shells: short scripts that ask this program, which knows every command and flag, and the daemon's names.

use super::failure::Failure;
use super::flags::{Command, Completes, Form, Parsed};
use super::http::Request;
use super::text::value::Value;
use super::{Client, Ending, output, program, table};

/// The hidden command that scripts call with the words typed so far; the last one is to be completed.
pub(crate) const ENTRY: &str = "__complete";
/// Names that are offered at most.
const NAMES_MAX: usize = 1000;

/// Prints the script for a shell.
pub(crate) fn script(_: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let program = program();
    let name = program.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let script = match parsed.arguments[0].as_str() {
        "bash" => format!(
            "_{name}_complete() {{
    local words=(\"${{COMP_WORDS[@]:1:COMP_CWORD}}\") IFS=$'\\n'
    # The shell takes words apart at colons; the program wants them whole.
    if declare -F _get_comp_words_by_ref >/dev/null; then
        local cur whole
        _get_comp_words_by_ref -n : -c cur -w whole
        words=(\"${{whole[@]:1}}\")
    fi
    COMPREPLY=($({program} {ENTRY} \"${{words[@]}}\" 2>/dev/null))
    if declare -F __ltrim_colon_completions >/dev/null; then __ltrim_colon_completions \"${{words[-1]}}\"; fi
}}
complete -o default -F _{name}_complete {program}
"
        ),
        "zsh" => format!(
            "#compdef {program}
_{name}_complete() {{
    local -a found
    found=(\"${{(@f)$({program} {ENTRY} \"${{(@)words[2,CURRENT]}}\" 2>/dev/null)}}\")
    if [[ -n \"${{found[1]}}\" ]]; then compadd -- \"${{found[@]}}\"; else _files; fi
}}
compdef _{name}_complete {program}
"
        ),
        "fish" => format!(
            "function __{name}_complete
    set -l words (commandline -opc) (commandline -ct)
    {program} {ENTRY} $words[2..-1] 2>/dev/null
end
complete -c {program} -a '(__{name}_complete)'
"
        ),
        shell => return Err(Failure::refused(format!("no completion for {shell:?}; use bash, zsh or fish"))),
    };
    output::print(&script)?;
    Ok(Ending::SUCCESS)
}

/// Prints what the last word can become, one a line. Without a daemon there are no names of its things, and that is no failure.
pub(crate) fn answer(client: Option<Client>, words: &[String]) -> Result<Ending, Failure> {
    let mut lines = candidates(client.as_ref(), words);
    lines.sort();
    lines.dedup();
    lines.truncate(NAMES_MAX);
    output::print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    Ok(Ending::SUCCESS)
}

fn candidates(client: Option<&Client>, words: &[String]) -> Vec<String> {
    let (typed, before) = words.split_last().map_or(("", &[][..]), |(typed, before)| (typed.as_str(), before));
    let fitting =
        |all: Vec<String>| -> Vec<String> { all.into_iter().filter(|word| word.starts_with(typed)).collect() };
    // What stands before the command, with its values.
    let mut start = 0;
    while let Some(word) = before.get(start).filter(|word| word.starts_with('-')) {
        let takes_value =
            matches!(word.as_str(), "-H" | "--host" | "--config" | "-c" | "--context" | "-l" | "--log-level");
        start += if takes_value { 2 } else { 1 };
    }
    let before = before.get(start..).unwrap_or_default();
    match table::find(before) {
        table::Found::Command { command, rest, .. } => fitting(of_command(client, command, &rest, typed)),
        _ if before.is_empty() => {
            let names =
                table::all().flat_map(|command| command.names).map(|name| name.split(' ').next().unwrap_or(name));
            fitting(names.chain(["daemon", "help"]).map(str::to_owned).collect())
        }
        _ if before.len() == 1 => {
            let names = table::all().flat_map(|command| command.names).filter_map(|name| name.split_once(' '));
            fitting(names.filter(|(group, _)| *group == before[0]).map(|(_, verb)| verb.to_owned()).collect())
        }
        _ => Vec::new(),
    }
}

fn of_command(client: Option<&Client>, command: &'static Command, rest: &[String], typed: &str) -> Vec<String> {
    // A flag that waits for its value: its files and numbers are the shell's affair, but for networks.
    let waiting = rest.last().and_then(|word| {
        let long = word.strip_prefix("--");
        let flag = command
            .flags()
            .find(|flag| long == Some(flag.long) || flag.short.is_some_and(|short| *word == format!("-{short}")));
        flag.filter(|flag| flag.form != Form::Bool)
    });
    if let Some(flag) = waiting {
        return match flag.long {
            "network" => names(client, Completes::Networks),
            "volumes-from" => names(client, Completes::Containers),
            "restart" => ["no", "always", "unless-stopped", "on-failure"].map(str::to_owned).to_vec(),
            "pull" => ["always", "missing", "never"].map(str::to_owned).to_vec(),
            _ => Vec::new(),
        };
    }
    if typed.starts_with('-') {
        let flags = command.flags().flat_map(|flag| {
            let short = flag.short.map(|short| format!("-{short}"));
            [Some(format!("--{}", flag.long)), short].into_iter().flatten()
        });
        return flags.chain(["--help".to_owned()]).collect();
    }
    let given = command.parse("", rest.to_vec()).map_or_else(
        // Too few arguments so far are no reason to offer nothing.
        |_| rest.iter().filter(|word| !word.starts_with('-')).count(),
        |parsed| parsed.arguments.len(),
    );
    match command.completes {
        Completes::FirstImage if given == 0 => names(client, Completes::Images),
        Completes::FirstRunning if given == 0 => names(client, Completes::RunningContainers),
        Completes::FirstImage | Completes::FirstRunning => Vec::new(),
        Completes::Networks if command.names.iter().any(|name| name.ends_with("connect")) && given == 1 => {
            names(client, Completes::Containers)
        }
        _ if given >= command.count.1 => Vec::new(),
        completes => names(client, completes),
    }
}

fn names(client: Option<&Client>, of: Completes) -> Vec<String> {
    let ask = |path: &str| client.and_then(|client| client.document(Request::get(path)).ok()).unwrap_or_default();
    let texts = |items: &[Value], field: &str| -> Vec<String> {
        items.iter().map(|item| item.text_at(&[field]).to_owned()).collect()
    };
    match of {
        Completes::Containers | Completes::RunningContainers => {
            let path = if of == Completes::Containers { "/containers/json?all=1" } else { "/containers/json" };
            let found = ask(path);
            let names = found.items().iter().flat_map(|container| container.at(&["Names"]).items());
            names.map(|name| name.text().trim_start_matches('/').to_owned()).collect()
        }
        Completes::Images => {
            let found = ask("/images/json");
            let names = found.items().iter().flat_map(|image| image.at(&["RepoTags"]).items());
            names
                .map(|name| name.text().trim_end_matches(":latest").to_owned())
                .filter(|name| !name.contains("<none>"))
                .collect()
        }
        Completes::Volumes => texts(ask("/volumes").at(&["Volumes"]).items(), "Name"),
        Completes::Networks => texts(ask("/networks").items(), "Name"),
        Completes::Nothing | Completes::FirstImage | Completes::FirstRunning => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(words: &[&str]) -> Vec<String> {
        candidates(None, &words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn commands_and_flags_are_completed_from_their_one_definition() {
        assert!(complete(&["ru"]).contains(&"run".to_owned()));
        assert!(complete(&[""]).len() > 40);
        let verbs = complete(&["volume", ""]);
        assert!(verbs.contains(&"prune".to_owned()) && !verbs.contains(&"pause".to_owned()));
        assert_eq!(complete(&["-H", "unix:///x", "run", "--read"]), ["--read-only"]);
        assert_eq!(complete(&["run", "--pull", "m"]), ["missing"]);
        assert_eq!(complete(&["run", "--name", ""]), [""; 0]);
        assert_eq!(complete(&["nothing", "x", ""]), [""; 0]);
    }
}
