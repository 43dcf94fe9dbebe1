//! Who outlives whom, and what is left.

use std::fs;
use std::time::{Duration, Instant};

use baleen_runtime::client;
use baleen_runtime::logs::LogStream;
use baleen_runtime::spec::NamespaceMode;
use baleen_runtime::{AttachOptions, ContainerStatus, RuntimeError, Shim};

use crate::Test;
use crate::fixture::{Fixture, Helper, eventually, is_alive, own_mounts, shim_pid};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_container_outlives_the_daemon_and_a_new_one_takes_over",
        a_container_outlives_the_daemon_and_a_new_one_takes_over,
    ),
    ("an_exit_while_no_daemon_runs_is_recorded", an_exit_while_no_daemon_runs_is_recorded),
    ("delete_ends_what_runs_and_removes_everything", delete_ends_what_runs_and_removes_everything),
    ("a_created_container_can_be_deleted", a_created_container_can_be_deleted),
    ("a_shim_does_not_end_on_request", a_shim_does_not_end_on_request),
    ("a_killed_shim_is_noticed_and_its_container_cleaned_up", a_killed_shim_is_noticed_and_its_container_cleaned_up),
    (
        "processes_of_a_container_in_the_hosts_pid_namespace_end_with_it",
        processes_of_a_container_in_the_hosts_pid_namespace_end_with_it,
    ),
    ("orphans_do_not_stay_zombies", orphans_do_not_stay_zombies),
    ("a_second_shim_for_one_container_is_refused", a_second_shim_for_one_container_is_refused),
    ("the_last_runs_exit_does_not_pass_for_this_ones", the_last_runs_exit_does_not_pass_for_this_ones),
    ("many_waiters_get_the_same_answer", many_waiters_get_the_same_answer),
    ("a_held_pipe_does_not_delay_the_exit_for_ever", a_held_pipe_does_not_delay_the_exit_for_ever),
    ("twenty_containers_at_once", twenty_containers_at_once),
    ("a_shim_is_small", a_shim_is_small),
    ("a_hundred_runs_leave_nothing_and_say_what_they_cost", a_hundred_runs_leave_nothing_and_say_what_they_cost),
];

fn a_container_outlives_the_daemon_and_a_new_one_takes_over() {
    let mut fixture = Fixture::sh("n=0; while :; do n=$((n+1)); echo line $n; sleep 0.02; done");
    fixture.spec.open_stdin = true;
    let mut daemon = Helper::spawn(&fixture);
    daemon.0.kill().unwrap();
    daemon.0.wait().unwrap();
    let count = || fixture.logged(LogStream::Stdout).lines().count();
    let before = count();
    eventually("the log grows without a daemon", || count() > before + 3);
    let shim = Shim::connect(&fixture.dir()).unwrap();
    assert_eq!(shim.state().unwrap().status, ContainerStatus::Running);
    assert!(is_alive(shim.pid()));
    let mut stream = shim.attach(AttachOptions { stdout: true, ..AttachOptions::default() }).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    std::io::Read::read_exact(&mut stream, &mut [0; 16]).unwrap();
    shim.kill(9).unwrap();
    assert_eq!(shim.wait().unwrap().exit_code, 137);
    let text = fixture.logged(LogStream::Stdout);
    for (index, line) in text.lines().enumerate() {
        assert_eq!(line, format!("line {}", index + 1), "no line is lost or doubled");
    }
}

fn an_exit_while_no_daemon_runs_is_recorded() {
    let fixture = Fixture::sh("sleep 0.3; echo bye; exit 9");
    let mut daemon = Helper::spawn(&fixture);
    daemon.0.kill().unwrap();
    daemon.0.wait().unwrap();
    fixture.wait_for_shim_end();
    let record = client::read_exit(&fixture.dir()).unwrap().unwrap();
    assert_eq!((record.exit_code, record.failure), (9, None));
    assert_eq!(fixture.logged(LogStream::Stdout), "bye\n");
}

fn delete_ends_what_runs_and_removes_everything() {
    let fixture = Fixture::sh("sleep 1000 & sleep 1000");
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    let pid = shim.pid();
    assert!(!fixture.cgroup_dirs().is_empty());
    shim.delete().unwrap();
    assert!(!fixture.dir().exists());
    assert!(fixture.cgroup_dirs().is_empty());
    assert!(!is_alive(pid));
    shim.delete().unwrap();
}

fn a_created_container_can_be_deleted() {
    let fixture = Fixture::new(&["true"]);
    let shim = fixture.create().unwrap();
    let pid = shim.pid();
    shim.delete().unwrap();
    assert!(!is_alive(pid) && !fixture.dir().exists());
}

fn a_shim_does_not_end_on_request() {
    use rustix::process::Signal;
    let fixture = Fixture::new(&["sleep", "1000"]);
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    let process = rustix::process::Pid::from_raw(shim_pid(&fixture)).unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        rustix::process::kill_process(process, signal).unwrap();
        assert_eq!(shim.state().unwrap().status, ContainerStatus::Running);
    }
    shim.kill(9).unwrap();
    assert_eq!(shim.wait().unwrap().exit_code, 137);
}

fn a_killed_shim_is_noticed_and_its_container_cleaned_up() {
    let fixture = Fixture::new(&["sleep", "1000"]);
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    let waiter = {
        let shim = shim.clone();
        std::thread::spawn(move || shim.wait())
    };
    let process = rustix::process::Pid::from_raw(shim_pid(&fixture)).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    assert!(matches!(waiter.join().unwrap(), Err(RuntimeError::ShimGone { .. })));
    assert!(matches!(Shim::connect(&fixture.dir()), Err(RuntimeError::ShimGone { .. })));
    assert_eq!(client::read_exit(&fixture.dir()).unwrap(), None);
    assert!(is_alive(shim.pid()));
    client::clean_up(&fixture.dir()).unwrap();
    assert!(!is_alive(shim.pid()));
    assert!(fixture.cgroup_dirs().is_empty() && !fixture.dir().exists());
}

fn processes_of_a_container_in_the_hosts_pid_namespace_end_with_it() {
    let mut fixture = Fixture::sh("sleep 1000 & echo $!; exit 4");
    fixture.spec.pid = NamespaceMode::Host;
    assert_eq!(fixture.run().unwrap().exit_code, 4);
    let sleeper: i32 = fixture.logged(LogStream::Stdout).trim().parse().unwrap();
    assert!(!is_alive(sleeper));
}

fn orphans_do_not_stay_zombies() {
    let mut fixture = Fixture::sh("for n in 1 2 3 4 5; do (true & true); done; echo made; sleep 1000");
    fixture.spec.pid = NamespaceMode::Host;
    let shim = fixture.create().unwrap();
    let parent = shim_pid(&fixture);
    shim.start().unwrap();
    eventually("the orphans are made", || fixture.logged(LogStream::Stdout) == "made\n");
    let children =
        || fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap().split_whitespace().count();
    eventually("only the container's first process is left", || children() == 1);
}

fn a_second_shim_for_one_container_is_refused() {
    let fixture = Fixture::new(&["sleep", "1000"]);
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    match fixture.create() {
        Err(RuntimeError::Start(failure)) => assert!(failure.message.contains("has a shim already"), "{failure}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(Shim::connect(&fixture.dir()).unwrap().state().unwrap().status, ContainerStatus::Running);
    shim.delete().unwrap();
}

fn the_last_runs_exit_does_not_pass_for_this_ones() {
    let fixture = Fixture::sh("exit 3");
    assert_eq!(fixture.run().unwrap().exit_code, 3);
    fixture.wait_for_shim_end();
    let shim = fixture.create().unwrap();
    assert_eq!(client::read_exit(&fixture.dir()).unwrap(), None);
    shim.delete().unwrap();
}

fn many_waiters_get_the_same_answer() {
    let mut fixture = Fixture::new(&["cat"]);
    fixture.spec.open_stdin = true;
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    let waiters: Vec<_> = (0..50)
        .map(|_| {
            let shim = shim.clone();
            std::thread::spawn(move || shim.wait().unwrap())
        })
        .collect();
    let pid = shim_pid(&fixture);
    eventually("all are connected", || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() > 50);
    shim.kill(9).unwrap();
    let first = shim.wait().unwrap();
    assert_eq!(first.exit_code, 137);
    waiters.into_iter().for_each(|waiter| assert_eq!(waiter.join().unwrap(), first));
}

fn a_held_pipe_does_not_delay_the_exit_for_ever() {
    let fixture = Fixture::new(&["sleep", "1000"]);
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    // Someone outside the container holds the writing end of its output.
    let held = fs::OpenOptions::new().write(true).open(format!("/proc/{}/fd/1", shim.pid())).unwrap();
    let begun = Instant::now();
    shim.kill(9).unwrap();
    assert_eq!(shim.wait().unwrap().exit_code, 137);
    assert!(begun.elapsed() < Duration::from_secs(8));
    drop(held);
}

fn twenty_containers_at_once() {
    let threads: Vec<_> = (0..20)
        .map(|number| {
            std::thread::spawn(move || {
                let fixture = Fixture::sh(&format!("echo {number}; exit {number}"));
                assert_eq!(fixture.run().unwrap().exit_code, number);
                assert_eq!(fixture.logged(LogStream::Stdout), format!("{number}\n"));
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn a_shim_is_small() {
    let fixture = Fixture::new(&["sleep", "1000"]);
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", shim_pid(&fixture))).unwrap();
    let kilobytes = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let (private, resident) = (kilobytes("Private_Dirty:"), kilobytes("Rss:"));
    println!("    shim: {private} kB private, {resident} kB resident (debug build)");
    // The release binary is measured elsewhere; this holds against growth.
    assert!(private < 4096, "{private} kB");
}

fn a_hundred_runs_leave_nothing_and_say_what_they_cost() {
    let fixture = Fixture::new(&["true"]);
    let mut steps: [Vec<Duration>; 4] = Default::default();
    for _ in 0..100 {
        let mut at = Instant::now();
        let mut lap = |step: usize| steps[step].push(std::mem::replace(&mut at, Instant::now()).elapsed());
        let shim = fixture.create().unwrap();
        lap(0);
        shim.start().unwrap();
        lap(1);
        assert_eq!(shim.wait().unwrap().exit_code, 0);
        lap(2);
        shim.delete().unwrap();
        lap(3);
    }
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1000.0
    };
    let [create, start, wait, delete] = steps.map(median);
    println!("    medians: create {create:.1} ms, start {start:.1} ms, wait {wait:.1} ms, delete {delete:.1} ms");
    assert_eq!(own_mounts(), [""; 0]);
    assert!(!fixture.dir().exists() && fixture.cgroup_dirs().is_empty());
}
