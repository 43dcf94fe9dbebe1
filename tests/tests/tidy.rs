//! The workspace keeps its own rules: what the pages say about crates, arrows and tests is so, and nothing points at one machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use baleen_tests::command::succeed;
use serde_json::Value;

/// Longest a source file may be, in lines: past it one wants a table of contents, so it is split by noun.
const LINES_MAX: usize = 900;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace").to_owned()
}

/// Every file that git knows or would add, below the workspace.
fn files() -> Result<Vec<PathBuf>> {
    let root = workspace();
    let root_text = root.to_string_lossy();
    let listed =
        succeed("git", &["-C", &root_text, "ls-files", "--cached", "--others", "--exclude-standard"])?.stdout();
    Ok(listed.lines().map(|name| root.join(name)).filter(|path| path.is_file()).collect())
}

/// The dependencies of each of our crates among ourselves, by kind: `normal`, `dev` or `build`.
fn arrows() -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let manifest = workspace().join("Cargo.toml");
    let text = succeed(
        env!("CARGO"),
        &["metadata", "--no-deps", "--format-version", "1", "--locked", "--manifest-path", &manifest.to_string_lossy()],
    )?;
    let metadata: Value = serde_json::from_slice(&text.stdout_bytes)?;
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().context("no packages")? {
        let name = package["name"].as_str().context("no name")?.trim_start_matches("baleen-").to_owned();
        let mut dependencies = BTreeMap::new();
        for dependency in package["dependencies"].as_array().context("no dependencies")? {
            if let Some(other) = dependency["name"].as_str().and_then(|name| name.strip_prefix("baleen-")) {
                let kind = dependency["kind"].as_str().unwrap_or("normal");
                dependencies.insert(other.to_owned(), kind.to_owned());
            }
        }
        found.insert(name, dependencies);
    }
    Ok(found)
}

#[test]
fn every_crate_and_every_arrow_between_crates_is_listed_in_the_architecture_page() -> Result<()> {
    let page = fs::read_to_string(workspace().join("docs/architecture.md"))?;
    // The page's list has one line a crate: "- `daemon` -> `engine`, `oci`: what it is". What follows the colon is prose.
    let mut listed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("- `")) {
        let head = line.split(':').next().unwrap_or_default();
        let (name, targets) = head.split_once("->").unwrap_or((head, ""));
        let name = name.trim().trim_matches('`').to_owned();
        let targets = targets.split(',').map(|word| word.trim().trim_matches('`').to_owned());
        listed.entry(name).or_default().extend(targets.filter(|word| !word.is_empty()));
    }
    let mut problems = Vec::new();
    for (name, dependencies) in arrows()? {
        let Some(allowed) = listed.get(&name) else {
            problems.push(format!("crate {name} is not listed"));
            continue;
        };
        for (other, kind) in dependencies {
            // The rig is everybody's dev-dependency; a test may look at any crate.
            if kind == "normal" && !allowed.contains(&other) {
                problems.push(format!("the arrow {name} -> {other} is not listed"));
            }
        }
    }
    assert!(problems.is_empty(), "docs/architecture.md:\n{}", problems.join("\n"));
    Ok(())
}

#[test]
fn every_test_that_the_promises_page_names_exists() -> Result<()> {
    let page = fs::read_to_string(workspace().join("docs/promises.md"))?;
    let mut tests = BTreeSet::new();
    for path in files()?.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let text = fs::read_to_string(path)?;
        // Tests with a harness of their own are listed by name.
        let listed = text.split("tests!(").skip(1).filter_map(|rest| rest.split(')').next());
        tests.extend(listed.flat_map(|names| names.split(',').map(|name| name.trim().to_owned())));
        // Or with their functions: `("name", name)`.
        let quoted: Vec<&str> = text.split('"').collect();
        let follows = |pair: &&[&str]| pair[1].trim_start_matches([',', ' ', '\n']).starts_with(pair[0]);
        tests.extend(
            quoted.windows(2).filter(|pair| !pair[0].is_empty()).filter(follows).map(|pair| pair[0].to_owned()),
        );
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.contains("#[test]") || line.contains("::test]") || line.contains("::test(") {
                is_test = true;
            } else if let Some(at) = line.find("fn ").filter(|_| is_test) {
                let name: String =
                    line[at + 3..].chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
                tests.insert(name);
                is_test = false;
            }
        }
    }
    // A test's name is a sentence of four words or more in backticks, without a path.
    let named: Vec<&str> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.matches('_').count() >= 3 && !word.contains(['/', '.', ' ', ':', '-', '=']))
        .filter(|word| {
            word.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
        })
        .collect();
    assert!(named.len() >= 8, "the page names only {} tests", named.len());
    let missing: Vec<&&str> = named.iter().filter(|name| !tests.contains(**name)).collect();
    assert!(missing.is_empty(), "docs/promises.md names tests that do not exist: {missing:?}");
    for promise in 1..=12 {
        assert!(page.contains(&format!("| P{promise} |")), "docs/promises.md has no line for P{promise}");
    }
    Ok(())
}

#[test]
fn no_file_names_a_place_that_only_one_machine_has() -> Result<()> {
    // Written in two parts, so that this file does not name them either.
    let words = [["/wo", "rk/"].concat(), ["/ro", "ot/."].concat()];
    let mut problems = Vec::new();
    for path in files()? {
        let Ok(text) = fs::read_to_string(&path) else { continue }; // Binary samples.
        for (number, line) in text.lines().enumerate() {
            for word in &words {
                // A path may end in such a part; a place begins with it.
                let begins = line.match_indices(word.as_str()).any(|(at, _)| {
                    at == 0
                        || !line[..at]
                            .ends_with(|letter: char| letter.is_alphanumeric() || "_-.<>}{*$)".contains(letter))
                });
                if begins {
                    problems.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
                }
            }
        }
    }
    assert!(problems.is_empty(), "machine paths:\n{}", problems.join("\n"));
    Ok(())
}

#[test]
fn no_dependency_comes_from_git_or_another_registry() -> Result<()> {
    let lock = fs::read_to_string(workspace().join("Cargo.lock"))?;
    let odd: Vec<&str> = lock
        .lines()
        .filter(|line| line.starts_with("source = "))
        .filter(|line| *line != "source = \"registry+https://github.com/rust-lang/crates.io-index\"")
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
    Ok(())
}

#[test]
fn unsafe_code_lives_in_modules_named_sys_and_every_other_crate_forbids_it() -> Result<()> {
    let mut problems = Vec::new();
    let mut with_unsafe = BTreeSet::new();
    // What a test runs as a program inside a container may do without a module for it.
    let sources: Vec<PathBuf> = files()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter(|path| path.components().any(|part| part.as_os_str() == "src"))
        .collect();
    for path in &sources {
        let is_sys = path.components().any(|part| part.as_os_str() == "sys" || part.as_os_str() == "sys.rs");
        for (number, line) in fs::read_to_string(path)?.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|word| code.contains(word))
                && !code.contains('"')
            {
                with_unsafe
                    .insert(path.ancestors().find(|folder| folder.join("Cargo.toml").is_file()).map(Path::to_owned));
                if !is_sys {
                    problems.push(format!("{}:{}: unsafe outside `sys`", path.display(), number + 1));
                }
            }
        }
    }
    for path in sources.iter().filter(|path| path.ends_with("src/lib.rs") || path.ends_with("src/main.rs")) {
        let folder = path.ancestors().find(|folder| folder.join("Cargo.toml").is_file()).map(Path::to_owned);
        if !with_unsafe.contains(&folder) && !fs::read_to_string(path)?.contains("#![forbid(unsafe_code)]") {
            problems.push(format!("{}: no #![forbid(unsafe_code)]", path.display()));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

#[test]
fn no_source_file_is_so_long_that_it_wants_a_table_of_contents() -> Result<()> {
    let mut problems = Vec::new();
    for path in files()?.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let lines = fs::read_to_string(path)?.lines().count();
        if lines > LINES_MAX {
            problems.push(format!("{} has {lines} lines", path.display()));
        }
    }
    assert!(problems.is_empty(), "split by noun (at most {LINES_MAX} lines):\n{}", problems.join("\n"));
    Ok(())
}
