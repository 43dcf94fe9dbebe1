//! The Python client, which reads streams and status codes more strictly than the CLI.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_tests::command::run;
use baleen_tests::daemon::Daemon;
use baleen_tests::image::busybox;
use baleen_tests::needs_root;
use baleen_tests::registry::Registry;
use baleen_tests::scratch::Scratch;
use baleen_tests::skip::skipped;

/// The interpreter that has docker-py: `make deps` makes it.
fn interpreter() -> Option<PathBuf> {
    let tools = std::env::var_os("BALEEN_TOOLS").map(PathBuf::from).or_else(|| {
        let program = std::env::current_exe().ok()?;
        Some(program.ancestors().nth(3)?.join("tools"))
    })?;
    Some(tools.join("venv/bin/python")).filter(|path| path.exists())
}

#[test]
fn docker_py_pulls_runs_logs_stops_exports_and_removes() -> Result<()> {
    needs_root!("docker_py_pulls_runs_logs_stops_exports_and_removes");
    let Some(python) = interpreter() else {
        skipped(
            "docker_py_pulls_runs_logs_stops_exports_and_removes",
            "docker-py is not installed; `make deps` does it",
        );
        return Ok(());
    };
    let scratch = Scratch::new("docker-py")?;
    let registry = Registry::start(&scratch)?;
    let reference = registry.reference("library/busybox:v1");
    busybox()?.push(&scratch, &reference)?;
    let daemon = Daemon::start(&scratch)?;
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docker_py/smoke.py");
    let mut command = Command::new(python);
    command.arg(script).arg(&reference).env("DOCKER_HOST", format!("unix://{}", daemon.socket().display()));
    command.env("DOCKER_CONFIG", daemon.client_folder());
    let finished = run(&mut command, None, Duration::from_secs(120))?.ok().with_context(|| daemon.log())?;
    println!("{}", finished.stdout().trim());
    Ok(())
}
