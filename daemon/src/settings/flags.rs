//! The command line of the daemon, read as dockerd's is: `--name value`, `--name=value`, `-n value`, `-nvalue`, `-Dn value`.

use super::SettingsError;
use super::table::{self, Form, Row, Settings};

/// What a command line asks for.
#[derive(Debug, Default)]
pub struct Invocation {
    pub(super) settings: Settings,
    /// `--config-file`.
    pub(super) config_file: Option<String>,
    /// `--validate`: check and exit.
    pub validate: bool,
    /// `--help`.
    pub help: bool,
    /// `--version`.
    pub version: bool,
}

/// The text of `baleen daemon --help`.
pub(crate) fn help() -> String {
    let mut text = String::from(
        "Usage: baleen daemon [OPTIONS]\n\nRuns the engine. Called as dockerd, baleen is the daemon as well.\n\nOptions:\n      --config-file string\n      --validate\n  -v, --version\n  -h, --help\n",
    );
    for row in table::ROWS.iter().filter(|row| row.fate == table::Fate::Honoured && row.key != "graph") {
        let short = row.short.map_or_else(|| "    ".to_owned(), |letter| format!("-{letter}, "));
        let form = match row.form {
            Form::Bool => "",
            Form::Number => " int",
            Form::List => " list",
            _ => " string",
        };
        text.push_str(&format!("  {short}--{}{form}\n", row.flag_name()));
    }
    text.push_str(
        "\nEvery other flag and daemon.json key of dockerd is known too: it is honoured, or refused by name.\n",
    );
    text
}

impl Invocation {
    /// Reads the arguments after `daemon`.
    ///
    /// # Errors
    /// `UnknownFlag`, `MissingValue`, `Argument` or `Invalid`, with the argument.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Invocation, SettingsError> {
        let mut invocation = Invocation::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            if let Some(long) = argument.strip_prefix("--").filter(|long| !long.is_empty()) {
                let (name, value) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (long, None),
                };
                invocation.long(name, value, &mut arguments)?;
            } else if let Some(letters) =
                argument.strip_prefix('-').filter(|letters| !letters.is_empty() && argument != "--")
            {
                invocation.short(letters, &mut arguments)?;
            } else {
                return Err(SettingsError::Argument { argument });
            }
        }
        Ok(invocation)
    }

    fn long(
        &mut self,
        name: &str,
        value: Option<String>,
        rest: &mut dyn Iterator<Item = String>,
    ) -> Result<(), SettingsError> {
        match name {
            "help" => self.help = true,
            "version" => self.version = true,
            "validate" => self.validate = true,
            "config-file" => self.config_file = Some(required("--config-file", value, rest)?),
            _ => {
                let row =
                    table::by_flag(name).ok_or_else(|| SettingsError::UnknownFlag { flag: format!("--{name}") })?;
                let value = match (row.form, value) {
                    (_, Some(value)) => value,
                    (Form::Bool, None) => "true".to_owned(),
                    (_, None) => required(&format!("--{name}"), None, rest)?,
                };
                self.put(row, value)?;
            }
        }
        Ok(())
    }

    fn short(&mut self, letters: &str, rest: &mut dyn Iterator<Item = String>) -> Result<(), SettingsError> {
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            match letter {
                'h' => self.help = true,
                'v' => self.version = true,
                _ => {
                    let flag = format!("-{letter}");
                    let row =
                        table::by_short(letter).ok_or_else(|| SettingsError::UnknownFlag { flag: flag.clone() })?;
                    let after = letters.as_str();
                    let value = match (row.form, after) {
                        (Form::Bool, after) if !after.starts_with('=') => {
                            self.put(row, "true".to_owned())?;
                            continue;
                        }
                        (_, "") => required(&flag, None, rest)?,
                        (_, after) => after.strip_prefix('=').unwrap_or(after).to_owned(),
                    };
                    return self.put(row, value);
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, row: &'static Row, value: String) -> Result<(), SettingsError> {
        row.check(&value)?;
        let values = self.settings.entry(row.key).or_default();
        // Of a single setting the last flag counts, of a list all do.
        if !matches!(row.form, Form::List | Form::Map | Form::Any) {
            values.clear();
        }
        values.push(value);
        Ok(())
    }
}

fn required(
    flag: &str,
    value: Option<String>,
    rest: &mut dyn Iterator<Item = String>,
) -> Result<String, SettingsError> {
    value.or_else(|| rest.next()).ok_or_else(|| SettingsError::MissingValue { flag: flag.to_owned() })
}
