//! Lists: as a table, by a template, as JSON.

use super::super::failure::Failure;
use super::super::output;
use super::template::Template;
use super::value::Value;

/// A column that a list can show.
#[derive(Debug)]
pub(crate) struct Column {
    /// Its name in templates.
    pub(crate) name: &'static str,
    /// Its head in tables.
    pub(crate) head: &'static str,
}

/// A column.
pub(crate) const fn column(name: &'static str, head: &'static str) -> Column {
    Column { name, head }
}

/// Prints rows by a format: empty or `table` shows the default columns, `table TEMPLATE` a table of others, `json` an object a
/// line, anything else is a template for each row.
///
/// # Errors
/// `Template` for a template that cannot be read or asks for what rows do not have.
pub(crate) fn print(format: Option<&str>, columns: &[Column], default: &[&str], rows: &[Value]) -> Result<(), Failure> {
    let format = format.unwrap_or_default();
    let (table, text) = match format.trim() {
        "" | "table" => {
            let fields: Vec<String> = default.iter().map(|name| format!("{{{{.{name}}}}}")).collect();
            (true, fields.join("\t"))
        }
        "json" => (false, "{{json .}}".to_owned()),
        _ => match format.strip_prefix("table ") {
            Some(rest) => (true, unescape(rest.trim())),
            None => (false, unescape(format)),
        },
    };
    let template = Template::parse(&text)?;
    let mut lines = Vec::with_capacity(rows.len() + 1);
    if table {
        let heads = columns.iter().map(|column| (column.name.to_owned(), Value::from(column.head))).collect();
        lines.push(template.head(&Value::Object(heads))?);
    }
    for row in rows {
        lines.push(template.strict(row)?);
    }
    if table {
        output::print(&align(&lines))
    } else {
        output::print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
    }
}

/// In formats `\t` and `\n` may be written as two characters.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

/// Aligns lines whose cells are separated by tabs: each column is as wide as its widest cell and three more, at least ten.
pub(crate) fn align(lines: &[String]) -> String {
    align_to(lines, 10)
}

/// Aligns with another least width of columns.
pub(crate) fn align_to(lines: &[String], least: usize) -> String {
    let rows: Vec<Vec<&str>> =
        lines.iter().flat_map(|line| line.split('\n')).map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        // The last cell of a row is not followed by a tab and takes no part.
        for (index, cell) in row.iter().take(row.len().saturating_sub(1)).enumerate() {
            let width = (cell.chars().count() + 3).max(least);
            match widths.get_mut(index) {
                Some(widest) => *widest = (*widest).max(width),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in &rows {
        for (index, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if index + 1 < row.len() {
                let padding = widths[index] - cell.chars().count();
                text.extend(std::iter::repeat_n(' ', padding));
            }
        }
        text.push('\n');
    }
    text
}

/// At most so many characters; what is cut ends in an ellipsis.
pub(crate) fn ellipsis(text: &str, characters_max: usize) -> String {
    if text.chars().count() <= characters_max {
        return text.to_owned();
    }
    text.chars().take(characters_max.saturating_sub(1)).chain(['…']).collect()
}

/// In double quotes, as Go quotes.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_control() && (c as u32) < 0x80 => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The first twelve characters of an id, without its algorithm.
pub(crate) fn short_id(id: &str) -> String {
    let id = id.split_once(':').map_or(id, |(_, encoded)| encoded);
    id.chars().take(12).collect()
}

/// Text from a daemon, without what a terminal would obey.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_docker_makes_them() {
        let lines = ["ID\tNAME\tSTATE".to_owned(), "0123456789ab\tx\tUp".to_owned(), "\tlong name here\t".to_owned()];
        let text = "ID             NAME             STATE\n0123456789ab   x                Up\n               long name here   \n";
        assert_eq!(align(&lines), text);
        assert_eq!(align(&["A\tB".to_owned()]), "A         B\n");
    }

    #[test]
    fn texts_are_cut_and_quoted_as_docker_does() {
        assert_eq!(ellipsis("sleep 1000", 20), "sleep 1000");
        assert_eq!(ellipsis("/bin/sh -c 'while true; do :; done'", 20), "/bin/sh -c 'while t…");
        assert_eq!(quote("a \"b\" \\ \n\u{1b}"), "\"a \\\"b\\\" \\\\ \\n\\x1b\"");
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(harmless("a\u{1b}[2Jb"), "a [2Jb");
    }
}
