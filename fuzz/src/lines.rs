//! The lines of our sources to which a program gives code, by its DWARF line table.
//!
//! L1  A line counts if a statement of the program begins in it. Functions that the linker found to be of no use to the
//!     program have no code; neither have comments, signatures and tests.
//! L2  Code that a derive or an attribute made is none of ours: lines of attributes and of definitions of types do not
//!     count, nor does a module of tests at the end of a file.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};
use gimli::{EndianSlice, LittleEndian};
use object::{Object as _, ObjectSection as _, SectionKind};

/// Where a statement begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Statement {
    /// Address in the program as it was linked.
    pub address: u64,
    /// Its line.
    pub line: u32,
}

/// The statements of some sources in a program. A source without any is in the map with none.
///
/// # Errors
/// If the program or a source cannot be read, or the program has no line table.
pub fn statements(program: &Path, sources: &[PathBuf]) -> Result<BTreeMap<PathBuf, Vec<Statement>>> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let object = object::File::parse(&*bytes).context("the program is no ELF file")?;
    let code: Vec<_> = object
        .sections()
        .filter(|section| section.kind() == SectionKind::Text)
        .map(|section| section.address()..section.address() + section.size())
        .collect();
    let section = |id: gimli::SectionId| -> Result<Cow<'_, [u8]>> {
        match object.section_by_name(id.name()) {
            Some(section) => Ok(Cow::Borrowed(section.data()?)),
            None => Ok(Cow::Borrowed(&[])),
        }
    };
    let sections = gimli::DwarfSections::load(section)?;
    let dwarf = sections.borrow(|section| EndianSlice::new(section, LittleEndian));

    let mut found = BTreeMap::new();
    let mut own = BTreeMap::new();
    for source in sources {
        own.insert(source.clone(), own_lines(source)?);
        found.insert(source.clone(), Vec::new());
    }
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        let unit = dwarf.unit(header)?;
        let Some(lines) = unit.line_program.clone() else { continue };
        let compiled_in = unit.comp_dir.map(|dir| dir.to_string_lossy().into_owned()).unwrap_or_default();
        let mut files = BTreeMap::new();
        let mut rows = lines.rows();
        while let Some((head, row)) = rows.next_row()? {
            let (Some(line), true) = (row.line(), row.is_stmt() && !row.end_sequence()) else { continue };
            // What the linker threw away has addresses that are none.
            if !code.iter().any(|range| range.contains(&row.address())) {
                continue;
            }
            let source = match files.get(&row.file_index()) {
                Some(known) => known,
                None => {
                    let path =
                        row.file(head).map(|file| path_of(&dwarf, &unit, head, file, &compiled_in)).transpose()?;
                    files.entry(row.file_index()).or_insert(path.filter(|path| found.contains_key(path)))
                }
            };
            let (Some(source), Ok(line)) = (source, u32::try_from(line.get())) else { continue };
            if own[source].contains(&line)
                && let Some(statements) = found.get_mut(source)
            {
                statements.push(Statement { address: row.address(), line });
            }
        }
    }
    Ok(found)
}

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// The absolute path of a file of a line table, without `.` and `..`.
fn path_of<'a>(
    dwarf: &gimli::Dwarf<Bytes<'a>>,
    unit: &gimli::Unit<Bytes<'a>>,
    head: &gimli::LineProgramHeader<Bytes<'a>>,
    file: &gimli::FileEntry<Bytes<'a>>,
    compiled_in: &str,
) -> Result<PathBuf> {
    let mut path = PathBuf::from(compiled_in);
    if let Some(folder) = file.directory(head) {
        path.push(&*dwarf.attr_string(unit, folder)?.to_string_lossy());
    }
    path.push(&*dwarf.attr_string(unit, file.path_name())?.to_string_lossy());
    let mut whole = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(whole.pop()),
            part => whole.push(part),
        }
    }
    Ok(whole)
}

/// The numbers of the lines that can count (L2).
fn own_lines(source: &Path) -> Result<BTreeSet<u32>> {
    let text = fs::read_to_string(source).with_context(|| format!("cannot read {}", source.display()))?;
    let mut own = BTreeSet::new();
    let mut closes: Option<String> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let trimmed = line.trim_start();
        if trimmed.starts_with("#[cfg(test)]") {
            break;
        }
        if closes.is_none() && is_type(trimmed) {
            closes = Some(format!("{}}}", &line[..line.len() - trimmed.len()]));
        }
        if closes.is_none() && !trimmed.starts_with("#[") {
            own.insert(number);
        }
        if closes.as_deref() == Some(line) {
            closes = None;
        }
    }
    Ok(own)
}

/// Whether a definition of a type with a body of several lines begins here.
fn is_type(line: &str) -> bool {
    let words = match line.strip_prefix("pub").map(str::trim_start) {
        Some(rest) => rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or(rest, |(_, rest)| rest),
        None => line,
    };
    let words = words.trim_start();
    (words.starts_with("struct ") || words.starts_with("enum ")) && line.ends_with('{')
}
