//! In virtual machines: what this machine cannot show. Other kernels, cgroup v2 alone, another architecture (docs/vm.md).
//!
//! The programs that run inside are the test programs of the workspace and the engine's binary, unchanged; `docker` inside is that
//! binary too. Here it is chosen which of them run where, and judged what they said.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use baleen_tests::machine::{Arch, Machine, folder};
use baleen_tests::scratch::Scratch;
use baleen_tests::skip::skipped;

/// Returns from the test that is named, reported as skipped, where no images were made.
macro_rules! needs_images {
    ($test:literal) => {
        if folder().is_none() {
            skipped($test, "no images of virtual machines; `make test-vm` makes them, as root");
            return Ok(());
        }
    };
}

/// A test program and its arguments: filters, as the harness takes them.
type Program = (&'static str, &'static [&'static str]);

/// Runs test programs in a machine and gives what they said; every test must pass, and at least so many must have run.
fn pass_inside(
    arch: Arch,
    kernel: &'static str,
    limit: Duration,
    programs: &[Program],
    count_min: usize,
) -> Result<()> {
    let from = folder().map(|folder| folder.join(arch.name())).unwrap_or_default();
    let mut machine = Machine::new(arch, kernel)?.limit(limit).with(&from.join("baleen"), "baleen");
    // Everything takes many times longer than on this machine, and every wait has to know.
    let mut script = String::from(
        "export PATH=/given/bin:$PATH BALEEN_BIN=/given/baleen BALEEN_TEST_PATIENCE=10 CI=true TMPDIR=/given/tmp\n\
         mkdir -p /given/bin /given/tmp && chmod 1777 /given/tmp && ln -s ../baleen /given/bin/docker\nfailed=0\n",
    );
    for (program, arguments) in programs {
        machine = machine.with(&from.join(program), program);
        script += &format!("echo; echo program {program}; ./{program} {} || failed=1\n", arguments.join(" "));
    }
    let answer = machine.run(&(script + "exit $failed\n"))?;
    let all: Vec<&str> =
        answer.output.lines().filter(|line| line.starts_with("test ") && line.contains(" ... ")).collect();
    let passed: Vec<&&str> = all.iter().filter(|line| line.contains(" ... ok")).collect();
    println!(
        "Linux {kernel} on {}: {} of {} tests passed, {:.0} s",
        arch.name(),
        passed.len(),
        all.len(),
        answer.took.as_secs_f64()
    );
    passed.iter().for_each(|line| println!("  {line}"));
    let told = || format!("Linux {kernel} on {}:\n{}", arch.name(), answer.output);
    ensure!(answer.code == 0 && !answer.output.contains("SKIPPED:"), "{}", told());
    ensure!(passed.len() >= count_min, "only {} tests ran: {}", passed.len(), told());
    Ok(())
}

#[test]
fn a_command_in_a_machine_has_its_output_and_its_exit_code() -> Result<()> {
    needs_images!("a_command_in_a_machine_has_its_output_and_its_exit_code");
    let scratch = Scratch::new("given")?;
    std::fs::create_dir(scratch.join("folder"))?;
    std::fs::write(scratch.join("folder/word"), "given\n")?;
    let script = "cat folder/word; id -u; uname -r; echo err >&2; head -c 300000 /dev/zero | tr '\\0' x; exit 7";
    let answer = Machine::new(Arch::Amd64, "6.1")?.with(&scratch.join("folder"), "folder").run(script)?;
    let (head, long) = answer.output.split_once("err\n").unwrap_or_default();
    assert!(head.starts_with("given\n0\n6.1."), "{head}");
    assert_eq!((answer.code, long.len()), (7, 300_000));
    // A signal is told as a shell tells it.
    assert_eq!(Machine::new(Arch::Amd64, "5.10")?.run("kill -TERM $$")?.code, 143);
    Ok(())
}

#[test]
fn a_machine_that_hangs_panics_or_is_dropped_ends_and_leaves_nothing() -> Result<()> {
    needs_images!("a_machine_that_hangs_panics_or_is_dropped_ends_and_leaves_nothing");
    let machine = Machine::new(Arch::Amd64, "6.1")?;
    let Err(panicked) = machine.run("echo before; echo c >/proc/sysrq-trigger; sleep 1000") else {
        bail!("a kernel that panicked gave an answer");
    };
    let text = format!("{panicked:#}");
    assert!(text.contains("no answer") && text.contains("before") && text.contains("sysrq"), "{text}");

    let Err(hung) = Machine::new(Arch::Amd64, "6.1")?.limit(Duration::from_secs(4)).run("sleep 1000") else {
        bail!("a machine outlived its time");
    };
    let text = format!("{hung:#}");
    assert!(text.contains("did not end within 4s"), "{text}");

    let running = machine.start("sleep 1000")?;
    let (pid, folder) = (running.pid(), running.folder().to_owned());
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists() && folder.exists());
    drop(running);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists() && !folder.exists());
    Ok(())
}

#[test]
fn on_cgroup_v2_alone_containers_run_under_limits_and_outlive_the_daemon() -> Result<()> {
    needs_images!("on_cgroup_v2_alone_containers_run_under_limits_and_outlive_the_daemon");
    let programs: &[Program] = &[
        ("tests-device", &[]),
        ("tests-exec", &["full_container", "told_by_events"]),
        ("tests-flags", &["limits_of", "rates_of"]),
    ];
    pass_inside(Arch::Amd64, "6.1", Duration::from_secs(900), programs, 7)
}

#[test]
fn without_uncached_writes_the_store_holds_and_a_layer_leaves_the_page_cache() -> Result<()> {
    needs_images!("without_uncached_writes_the_store_holds_and_a_layer_leaves_the_page_cache");
    // No kernel before 6.14 has `RWF_DONTCACHE`.
    let programs: &[Program] =
        &[("snapshotter-extraction", &["leaves_the_page_cache"]), ("store-verbs", &[]), ("store-errors", &[])];
    pass_inside(Arch::Amd64, "6.1", Duration::from_secs(900), programs, 24)
}

#[test]
fn on_linux_5_10_images_are_pulled_stored_and_checked_and_starts_refused_by_name() -> Result<()> {
    needs_images!("on_linux_5_10_images_are_pulled_stored_and_checked_and_starts_refused_by_name");
    let programs: &[Program] = &[("tests-device", &["stores_what_it_pulled"])];
    pass_inside(Arch::Amd64, "5.10", Duration::from_secs(600), programs, 1)
}

#[test]
fn on_arm64_a_device_pulls_runs_and_checks_its_store() -> Result<()> {
    needs_images!("on_arm64_a_device_pulls_runs_and_checks_its_store");
    let programs: &[Program] = &[("tests-device", &[])];
    pass_inside(Arch::Arm64, "6.1", Duration::from_secs(900), programs, 3)
}
