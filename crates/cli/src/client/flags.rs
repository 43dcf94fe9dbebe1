//! Commands and their flags: one definition each, from which parsing, help and completion come.
//!
//! F1  A flag is defined once. Commands that share it refer to one list of flags.
//! F2  A value is checked for its form while it is read, so commands may rely on it.
//!
//! Read as docker's command line is: `--name value`, `--name=value`, `-n value`, `-nvalue`, `-it`; a boolean takes a value only
//! behind `=`; `--` ends the flags.

use std::collections::BTreeMap;

use super::failure::Failure;
use super::text::units;
use super::{Client, Ending};

/// How a flag's value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Stands alone.
    Bool,
    /// The word is shown in the help.
    Text(&'static str),
    Number,
    /// Bytes, as `512m`.
    Bytes,
    /// A decimal, as `1.5`.
    Decimal,
    /// As `1m30s`.
    Duration,
    /// May be repeated; the word is shown in the help.
    List(&'static str),
}

impl Form {
    /// The word for the value in a help text.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Form::Bool => "",
            Form::Text(word) | Form::List(word) => word,
            Form::Number => "int",
            Form::Bytes => "bytes",
            Form::Decimal => "decimal",
            Form::Duration => "duration",
        }
    }

    fn check(self, value: &str) -> Result<(), String> {
        match self {
            Form::Bool => parse_bool(value).map(drop).ok_or_else(|| "expected true or false".to_owned()),
            Form::Text(_) | Form::List(_) => Ok(()),
            Form::Number => value.parse::<i64>().map(drop).map_err(|_| "expected an integer".to_owned()),
            // -1 has a meaning for some: unlimited.
            Form::Bytes if value == "-1" => Ok(()),
            Form::Bytes => units::parse_bytes(value).map(drop).ok_or_else(|| "expected bytes, as 512m".to_owned()),
            Form::Decimal => units::parse_nano(value).map(drop).ok_or_else(|| "expected a decimal".to_owned()),
            Form::Duration => {
                units::parse_duration(value).map(drop).ok_or_else(|| "expected a duration, as 1m30s".to_owned())
            }
        }
    }
}

/// A flag.
#[derive(Debug)]
pub(crate) struct Flag {
    pub(crate) long: &'static str,
    pub(crate) short: Option<char>,
    pub(crate) form: Form,
    pub(crate) help: &'static str,
}

impl Flag {
    /// `-n, --name`, as errors show it.
    fn shown(&self) -> String {
        match self.short {
            Some(short) => format!("-{short}, --{}", self.long),
            None => format!("--{}", self.long),
        }
    }
}

/// A flag with a short form.
pub(crate) const fn short(short: char, long: &'static str, form: Form, help: &'static str) -> Flag {
    Flag { long, short: Some(short), form, help }
}

/// A flag without one.
pub(crate) const fn long(long: &'static str, form: Form, help: &'static str) -> Flag {
    Flag { long, short: None, form, help }
}

/// What an argument of a command names, for completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Completes {
    Nothing,
    /// All of them, or those that run.
    Containers,
    RunningContainers,
    Images,
    Volumes,
    Networks,
    /// The first argument alone is an image (run, create).
    FirstImage,
    /// The first argument alone is a running container (exec, top).
    FirstRunning,
}

/// A command.
#[derive(Debug)]
pub(crate) struct Command {
    /// All its names, as `ps` and `container ls`; the first is the one that its help shows.
    pub(crate) names: &'static [&'static str],
    /// Its arguments as the usage line shows them.
    pub(crate) arguments: &'static str,
    /// How many arguments there must be, and may be.
    pub(crate) count: (usize, usize),
    pub(crate) about: &'static str,
    pub(crate) flags: &'static [&'static [Flag]],
    /// Whether flags may follow arguments; not where the arguments are another program's command line.
    pub(crate) mixed: bool,
    pub(crate) completes: Completes,
    pub(crate) run: fn(&Client, &Parsed) -> Result<Ending, Failure>,
}

/// Any number of arguments.
pub(crate) const MANY: usize = usize::MAX;

impl Command {
    /// Every flag.
    pub(crate) fn flags(&self) -> impl Iterator<Item = &'static Flag> + use<> {
        self.flags.iter().flat_map(|flags| flags.iter())
    }

    /// Reads what follows the command's name.
    ///
    /// # Errors
    /// `BadFlags` (exit code 125) or `BadArguments` (1), which name the command.
    pub(crate) fn parse(&'static self, name: &str, words: Vec<String>) -> Result<Parsed, Failure> {
        let bad = |reason: String| Failure::BadFlags { reason, command: name.to_owned(), usage: self.arguments };
        let mut parsed = Parsed { command: name.to_owned(), ..Parsed::default() };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if word == "--" {
                parsed.arguments.extend(words);
                break;
            } else if let Some(text) = word.strip_prefix("--") {
                let (long, value) = match text.split_once('=') {
                    Some((long, value)) => (long, Some(value.to_owned())),
                    None => (text, None),
                };
                if long == "help" {
                    parsed.help = true;
                    return Ok(parsed);
                }
                let flag = self.long(long).ok_or_else(|| bad(format!("unknown flag: --{long}")))?;
                let value = match value {
                    Some(value) => value,
                    None if flag.form == Form::Bool => "true".to_owned(),
                    None => words.next().ok_or_else(|| bad(format!("flag needs an argument: --{long}")))?,
                };
                parsed.put(flag, value).map_err(bad)?;
            } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
                let mut rest = letters;
                while let Some(letter) = rest.chars().next() {
                    rest = &rest[letter.len_utf8()..];
                    let Some(flag) = self.flags().find(|flag| flag.short == Some(letter)) else {
                        if letter == 'h' {
                            parsed.help = true;
                            return Ok(parsed);
                        }
                        return Err(bad(format!("unknown shorthand flag: '{letter}' in -{letters}")));
                    };
                    let value = match (flag.form, rest) {
                        (Form::Bool, rest) if !rest.starts_with('=') => {
                            parsed.put(flag, "true".to_owned()).map_err(bad)?;
                            continue;
                        }
                        (_, "") => words
                            .next()
                            .ok_or_else(|| bad(format!("flag needs an argument: '{letter}' in -{letters}")))?,
                        (_, rest) => rest.strip_prefix('=').unwrap_or(rest).to_owned(),
                    };
                    parsed.put(flag, value).map_err(bad)?;
                    break;
                }
            } else {
                parsed.arguments.push(word);
                if !self.mixed {
                    parsed.arguments.extend(words);
                    break;
                }
            }
        }
        let (least, most) = self.count;
        let found = parsed.arguments.len();
        if found < least || found > most {
            let plural = |count: usize| if count == 1 { "argument" } else { "arguments" };
            let reason = match (least, most) {
                (0, 0) => "accepts no arguments".to_owned(),
                (least, most) if least == most => format!("requires {least} {}", plural(least)),
                (least, _) if found < least => format!("requires at least {least} {}", plural(least)),
                (_, most) => format!("requires at most {most} {}", plural(most)),
            };
            return Err(Failure::BadArguments { reason, command: name.to_owned(), usage: self.arguments });
        }
        Ok(parsed)
    }

    fn long(&self, long: &str) -> Option<&'static Flag> {
        // Other spellings that docker takes, some of them for ever.
        let long = match long {
            "net" => "network",
            "net-alias" => "network-alias",
            "dns-opt" => "dns-option",
            "time" => "timeout",
            other => other,
        };
        self.flags().find(|flag| flag.long == long)
    }
}

/// A command line that was read.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    /// The command's name as it was called, as `container ls`.
    pub(crate) command: String,
    pub(crate) arguments: Vec<String>,
    /// Help is asked for; nothing else was read.
    pub(crate) help: bool,
    values: BTreeMap<&'static str, Vec<String>>,
}

impl Parsed {
    fn put(&mut self, flag: &'static Flag, value: String) -> Result<(), String> {
        flag.form
            .check(&value)
            .map_err(|reason| format!("invalid argument {value:?} for {:?} flag: {reason}", flag.shown()))?;
        let values = self.values.entry(flag.long).or_default();
        // Of a single value the last one counts.
        if !matches!(flag.form, Form::List(_)) {
            values.clear();
        }
        values.push(value);
        Ok(())
    }

    /// Whether the flag was given at all.
    pub(crate) fn given(&self, long: &str) -> bool {
        self.values.contains_key(long)
    }

    /// A boolean that is false unless it was given.
    pub(crate) fn is(&self, long: &str) -> bool {
        self.boolean(long).unwrap_or(false)
    }

    /// A boolean, if it was given.
    pub(crate) fn boolean(&self, long: &str) -> Option<bool> {
        self.text(long).and_then(parse_bool)
    }

    /// A text, if it was given.
    pub(crate) fn text(&self, long: &str) -> Option<&str> {
        self.values.get(long).and_then(|values| values.last()).map(String::as_str)
    }

    /// A number, if it was given.
    pub(crate) fn number(&self, long: &str) -> Option<i64> {
        self.text(long).and_then(|text| text.parse().ok())
    }

    /// Bytes, if they were given; -1 stays -1.
    pub(crate) fn bytes(&self, long: &str) -> Option<i64> {
        self.text(long).and_then(|text| if text == "-1" { Some(-1) } else { units::parse_bytes(text) })
    }

    /// Every value of a list.
    pub(crate) fn list(&self, long: &str) -> &[String] {
        self.values.get(long).map_or(&[], Vec::as_slice)
    }
}

/// Go's idea of a boolean in flags.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Form::{Bool, List, Number, Text};

    fn nothing(_: &Client, _: &Parsed) -> Result<Ending, Failure> {
        Ok(Ending::SUCCESS)
    }

    const FLAGS: &[Flag] = &[
        short('i', "interactive", Bool, ""),
        short('t', "tty", Bool, ""),
        short('e', "env", List("list"), ""),
        short('n', "last", Number, ""),
        long("network", Text("network"), ""),
    ];
    static RUN: Command = Command {
        names: &["run"],
        arguments: "IMAGE",
        count: (1, MANY),
        about: "",
        flags: &[FLAGS],
        mixed: false,
        completes: Completes::Nothing,
        run: nothing,
    };
    static PS: Command = Command { names: &["ps"], count: (0, 1), mixed: true, ..RUN };

    fn read(command: &'static Command, words: &[&str]) -> Result<Parsed, String> {
        command.parse("x", words.iter().map(|word| (*word).to_owned()).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_are_read_in_every_way_that_docker_writes_them() {
        let parsed =
            read(&RUN, &["-it", "-eA=1", "-e", "B=2", "--env=C", "--net", "none", "-n=3", "busybox", "ls", "-l"]);
        let parsed = parsed.expect("well formed");
        assert!(parsed.is("interactive") && parsed.is("tty") && !parsed.given("x"));
        assert_eq!(parsed.list("env"), ["A=1", "B=2", "C"]);
        assert_eq!((parsed.text("network"), parsed.number("last")), (Some("none"), Some(3)));
        assert_eq!(parsed.arguments, ["busybox", "ls", "-l"]);
        assert_eq!(read(&RUN, &["--tty=false", "--", "-x"]).expect("well formed").boolean("tty"), Some(false));
        assert_eq!(read(&PS, &["x", "-t"]).expect("well formed").arguments, ["x"]);
        assert!(read(&RUN, &["--help"]).expect("well formed").help);
    }

    #[test]
    fn what_is_no_flag_and_what_is_no_value_is_refused_by_name() {
        for (words, message) in [
            (&["--colour"][..], "unknown flag: --colour"),
            (&["-x"], "unknown shorthand flag: 'x' in -x"),
            (&["-ix"], "unknown shorthand flag: 'x' in -ix"),
            (&["-n", "many"], "invalid argument \"many\" for \"-n, --last\" flag: expected an integer"),
            (&["--tty=perhaps"], "invalid argument \"perhaps\" for \"-t, --tty\" flag: expected true or false"),
            (&["--network"], "flag needs an argument: --network"),
            (&["-e"], "flag needs an argument: 'e' in -e"),
        ] {
            let refused = read(&RUN, words).expect_err("no such thing");
            assert!(refused.starts_with(message), "{refused}");
        }
        assert!(read(&RUN, &[]).expect_err("an image is needed").contains("requires at least 1 argument"));
        assert!(read(&PS, &["a", "b"]).expect_err("too many").contains("requires at most 1 argument"));
    }
}
