//! What our client shows and how it ends, beside docker's client on the same daemon where that is there.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::image;
use crate::support::{Daemon, PATIENCE, Scratch, docker, is_root};

/// A daemon with one image of two names, and what goes away with it.
pub(crate) struct Setting {
    pub(crate) daemon: Daemon,
    pub(crate) scratch: Scratch,
}

impl Setting {
    /// Nothing where the test cannot run.
    pub(crate) fn new(test: &str) -> Option<Setting> {
        if !is_root(test) {
            return None;
        }
        let scratch = Scratch::new();
        let archive = image::archive(test, &scratch, &["bb:1", "bb:latest"])?;
        let daemon = Daemon::start(&scratch, "a", |command| {
            command.args(["--cgroup-parent", &format!("/{}", cgroup(&scratch))]);
        });
        let setting = Setting { daemon, scratch };
        let loaded = setting.baleen(&["load", "-i", &archive.display().to_string()]);
        assert_eq!(loaded.out, "Loaded image: bb:1\nLoaded image: bb:latest\n");
        Some(setting)
    }

    /// Runs our client to its end.
    pub(crate) fn baleen(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.daemon.client().args(arguments).stdin(Stdio::null()).output().expect("the client starts"))
    }
}

/// The cgroup for a test's containers, named as its folder is.
fn cgroup(scratch: &Scratch) -> String {
    let folder = scratch.path("");
    folder.file_name().expect("it has a name").to_string_lossy().into_owned()
}

impl Drop for Setting {
    fn drop(&mut self) {
        // Containers outlive their daemon; these must not outlive their test.
        let ids = self.baleen(&["ps", "-aq"]).out;
        let ids: Vec<&str> = ids.lines().collect();
        if !ids.is_empty() {
            self.baleen(&[&["rm", "-f"], ids.as_slice()].concat());
        }
        // Version 1 has a tree for each controller, version 2 has one.
        let trees = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for tree in trees.chain(["/sys/fs/cgroup".into()]) {
            let _ = fs::remove_dir(tree.join(cgroup(&self.scratch)));
        }
    }
}

/// A client that has ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    fn of(output: Output) -> Ended {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Its exit code and output; what it told people does not matter.
    fn plain(&self) -> (i32, &str) {
        (self.code, &self.out)
    }
}

/// Looks again and again until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what} does not come true");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn lists_and_inspections_are_the_same_text_as_docker_s() {
    let test = "lists_and_inspections_are_the_same_text_as_docker_s";
    let (Some(docker), Some(setting)) = (docker(test), Setting::new(test)) else { return };
    let ok = |arguments: &[&str]| {
        let ended = setting.baleen(arguments);
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.err);
        ended.out
    };
    ok(&["run", "-d", "--network", "none", "--name", "running", "-l", "k=v", "-l", "a=b", "bb", "sleep", "1000"]);
    ok(&["run", "--network", "none", "--name", "ended", "bb", "sh", "-c", "echo out; echo err >&2; exit 0"]);
    ok(&[
        "create",
        "--network",
        "none",
        "--name",
        "created",
        "-v",
        "/etc:/in:ro",
        "bb:1",
        "sh",
        "-c",
        "a very long \"command\" indeed",
    ]);
    ok(&["tag", "bb", "host.example:5000/a/b:c"]);
    assert_eq!(ok(&["volume", "create", "--label", "a=b", "data10"]), "data10\n");
    ok(&["volume", "create", "data9"]);
    ok(&["create", "--network", "none", "--name", "with-volume", "-v", "data9:/d", "bb"]);
    let lines: &[&[&str]] = &[
        &["ps"],
        &["ps", "-a"],
        &["ps", "-a", "--no-trunc"],
        &["ps", "-aq"],
        &["ps", "-l"],
        &["ps", "-n", "2"],
        &["ps", "-s", "--filter", "name=running"],
        &["ps", "-a", "--filter", "status=created", "--filter", "status=exited"],
        &["ps", "-a", "--filter", "label=k=v"],
        &["container", "ls", "--format", "{{.ID}} {{.Names}} {{.Image}} {{.State}}"],
        &["ps", "-a", "--format", "table {{.Names}}\\t{{.Label \"k\"}}\\t{{.Networks}}"],
        &["ps", "-a", "--format", "{{upper .Names}}:{{json .Command}}:{{.Mounts}}"],
        &["ps", "--format", "{{if eq .State \"running\"}}up{{else}}down{{end}}"],
        &["images"],
        &["images", "bb"],
        &["images", "-q", "--no-trunc"],
        &["images", "--digests"],
        &["images", "--filter", "reference=host.example:5000/*/*"],
        &["image", "ls", "--format", "{{.Repository}}:{{.Tag}} {{.ID}} {{.Size}}"],
        &["inspect", "running"],
        &["inspect", "running", "ended"],
        &["image", "inspect", "-f", "{{.Id}} {{.RepoTags}} {{.Size}} {{.Os}}/{{.Architecture}} {{.Config.Cmd}}", "bb"],
        &[
            "inspect",
            "--format",
            "{{.State.Status}} {{.State.Running}} {{.Config.Image}} {{.HostConfig.NetworkMode}}",
            "running",
        ],
        &["inspect", "-f", "{{range .Config.Env}}{{println .}}{{end}}{{index .Config.Labels \"k\"}}", "running"],
        &["inspect", "-f", "{{range .Mounts}}{{.Source}}:{{.Destination}}:{{.RW}}{{end}}", "created"],
        &["inspect", "-f", "{{json .Config.Cmd}} {{len .Config.Labels}}", "created"],
        &["inspect", "-f", "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}", "running"],
        &["logs", "ended"],
        &["logs", "-t", "ended"],
        &["logs", "-n", "0", "ended"],
        &["network", "ls"],
        &["volume", "ls"],
        &["volume", "ls", "-q", "--filter", "dangling=true"],
        &["volume", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}} {{.Label \"a\"}}"],
        &["volume", "inspect", "data10", "data9"],
        &["volume", "rm", "data9"],
        &["volume", "rm", "nothing"],
        &["system", "df"],
        &["port", "running"],
        &["version", "--format", "{{.Server.Version}} {{.Server.APIVersion}}"],
        &["info", "--format", "{{.Containers}} {{.ContainersRunning}} {{.Driver}} {{.OSType}}"],
        &["events", "--since", "1h", "--until", "0s", "--filter", "type=container", "--filter", "event=die"],
        // What fails fails in the same way.
        &["ps", "--format", "{{.Nope}}"],
        &["logs", "nobody"],
        &["rm", "running"],
        &["stop", "nobody"],
        &["rmi", "nothing:1"],
        &["ps", "--no-such-flag"],
        &["ps", "--filter", "colour=red"],
        &["no-such-command"],
    ];
    let mut different = Vec::new();
    for line in lines {
        let theirs = || {
            Ended::of(
                Command::new(&docker)
                    .args(*line)
                    .env("DOCKER_HOST", setting.daemon.host())
                    .env("DOCKER_CONFIG", "/nonexistent")
                    .env_remove("DOCKER_CONTEXT")
                    .stdin(Stdio::null())
                    .output()
                    .expect("docker starts"),
            )
        };
        // Times are told in seconds, and a second may pass between the two.
        let same = (0..4).any(|_| setting.baleen(line).plain() == theirs().plain());
        if !same {
            different.push(format!("{line:?}:\n{:?}\n{:?}", theirs(), setting.baleen(line)));
        }
    }
    assert!(different.is_empty(), "docker's, then ours:\n{}", different.join("\n"));
}

#[test]
fn a_run_gives_back_what_its_program_says_and_its_exit_code() {
    let Some(setting) = Setting::new("a_run_gives_back_what_its_program_says_and_its_exit_code") else { return };
    let run = |arguments: &[&str]| setting.baleen(&[&["run", "--rm", "--network", "none"], arguments].concat());
    let said = run(&["bb", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(said, Ended { code: 7, out: "out\n".into(), err: "err\n".into() });
    let missing = run(&["bb", "no-such-program"]);
    assert!(missing.code == 127 && missing.err.contains("executable file not found"), "{missing:?}");
    assert_eq!(run(&["bb", "/bin"]).code, 126);
    assert_eq!(run(&["--no-such-flag", "bb"]).code, 125);
    assert_eq!(run(&["--memory", "1", "bb"]).code, 125);
    assert_eq!(setting.baleen(&["ps", "-aq"]).out, "", "a failed or ended --rm leaves nothing");

    // All of a large output, though its reader is slow and its end comes at once.
    let long = run(&["bb", "seq", "200000"]);
    assert_eq!(long.out.lines().count(), 200_000);
    assert!(long.out.ends_with("\n200000\n"));

    let mut fed = setting.daemon.client();
    fed.args(["run", "-i", "--rm", "--network", "none", "bb", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut fed = fed.spawn().expect("the client starts");
    let text = "0123456789\n".repeat(100_000);
    let mut input = fed.stdin.take().expect("piped");
    let writer = std::thread::spawn({
        let text = text.clone();
        move || input.write_all(text.as_bytes())
    });
    let echoed = fed.wait_with_output().expect("our child");
    writer.join().expect("no panic").expect("it is read");
    assert!(echoed.status.success() && echoed.stdout == text.as_bytes(), "{} bytes came back", echoed.stdout.len());

    let cid = setting.scratch.path("cid").display().to_string();
    let detached = setting.baleen(&[
        "run",
        "-d",
        "--network",
        "none",
        "--cidfile",
        &cid,
        "--name",
        "late",
        "bb",
        "sh",
        "-c",
        "exit 3",
    ]);
    assert_eq!(fs::read_to_string(&cid).expect("written") + "\n", detached.out);
    assert!(setting.baleen(&["run", "--cidfile", &cid, "bb"]).err.contains("container ID file found"));
    assert_eq!(setting.baleen(&["wait", "late"]).out, "3\n");
    assert_eq!(setting.baleen(&["start", "-a", "late"]).code, 3);
    assert_eq!(
        setting.baleen(&["rm", "late", "late"]),
        Ended { code: 1, out: "late\n".into(), err: "Error response from daemon: No such container: late\n".into() }
    );
    assert_eq!(setting.baleen(&["run", "-d", "--network", "none", "--name", "taken", "bb", "true"]).code, 0);
    assert_eq!(setting.baleen(&["run", "--network", "none", "--name", "taken", "bb"]).code, 125);
}

#[test]
fn signals_and_attached_clients_reach_the_container() {
    let Some(setting) = Setting::new("signals_and_attached_clients_reach_the_container") else { return };
    let script = "trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.05; done";
    let mut client = setting.daemon.client();
    client.args(["run", "--network", "none", "--name", "trap", "bb", "sh", "-c", script]).stdout(Stdio::piped());
    let mut client = client.stdin(Stdio::null()).spawn().expect("the client starts");
    let mut lines = BufReader::new(client.stdout.take().expect("piped")).lines();
    let mut line = || lines.next().map(|line| line.expect("text"));
    assert_eq!(line().as_deref(), Some("ready"));
    kill_process(Pid::from_child(&client), Signal::USR1).expect("our child");
    assert_eq!(line().as_deref(), Some("caught"));
    assert_eq!(client.wait().expect("our child").code(), Some(9));

    // One that is attached from outside sees what comes, and ends with the container and its code.
    let quiet = "trap 'echo ending; exit 4' TERM; while :; do echo tick; sleep 0.05; done";
    assert_eq!(setting.baleen(&["run", "-d", "--network", "none", "--name", "ticks", "bb", "sh", "-c", quiet]).code, 0);
    let mut attached = setting.daemon.client();
    attached.args(["attach", "--no-stdin", "ticks"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut attached = attached.spawn().expect("the client starts");
    let mut lines = BufReader::new(attached.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "tick");
    let mut followed = setting.daemon.client();
    followed.args(["logs", "-f", "ticks"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let followed = followed.spawn().expect("the client starts");
    kill_process(Pid::from_child(&attached), Signal::TERM).expect("our child");
    assert_eq!(lines.last().expect("a last line").expect("text"), "ending");
    assert_eq!(attached.wait().expect("our child").code(), Some(4));
    let followed = followed.wait_with_output().expect("our child");
    assert!(followed.status.success() && followed.stdout.ends_with(b"tick\nending\n"));
    let refused = setting.baleen(&["attach", "ticks"]);
    assert!(refused.code == 1 && refused.err.contains("cannot attach to a stopped container"), "{refused:?}");
}

#[test]
fn programs_run_in_a_container_with_their_own_input_output_and_exit_code() {
    let Some(setting) = Setting::new("programs_run_in_a_container_with_their_own_input_output_and_exit_code") else {
        return;
    };
    assert_eq!(setting.baleen(&["run", "-d", "--network", "none", "--name", "host", "bb", "sleep", "1000"]).code, 0);
    let exec = |arguments: &[&str]| setting.baleen(&[&["exec"], arguments].concat());
    let said = exec(&[
        "-e",
        "A=1",
        "-w",
        "/bin",
        "-u",
        "7:8",
        "host",
        "sh",
        "-c",
        "echo $A $PWD $(id -u):$(id -g); echo err >&2; exit 6",
    ]);
    assert_eq!(said, Ended { code: 6, out: "1 /bin 7:8\n".into(), err: "err\n".into() });
    assert_eq!(exec(&["host", "no-such-program"]).code, 127);
    assert_eq!(exec(&["nobody", "true"]).code, 1);
    assert_eq!(
        exec(&["-d", "host", "sh", "-c", "echo done > /mark"]),
        Ended { code: 0, out: String::new(), err: String::new() }
    );
    until("the program in the background runs", || exec(&["host", "cat", "/mark"]).out == "done\n");
    let mut fed = setting.daemon.client();
    fed.args(["exec", "-i", "host", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut fed = fed.spawn().expect("the client starts");
    fed.stdin.take().expect("piped").write_all(b"through\n").expect("it reads");
    assert_eq!(fed.wait_with_output().expect("our child").stdout, b"through\n");
    let top = setting.baleen(&["top", "host"]);
    assert!(top.out.starts_with("UID ") && top.out.contains("sleep 1000"), "{top:?}");
    assert_eq!(setting.baleen(&["pause", "host"]).out, "host\n");
    assert!(setting.baleen(&["ps"]).out.contains("(Paused)"));
    assert_eq!(setting.baleen(&["unpause", "host"]).out, "host\n");
    assert_eq!(setting.baleen(&["rename", "host", "renamed"]).code, 0);
    assert_eq!(setting.baleen(&["update", "--memory", "64m", "--memory-swap", "64m", "renamed"]).out, "renamed\n");
    assert_eq!(
        setting.baleen(&["inspect", "-f", "{{.Name}} {{.HostConfig.Memory}}", "renamed"]).out,
        "/renamed 67108864\n"
    );
    assert_eq!(setting.baleen(&["restart", "-t", "0", "renamed"]).out, "renamed\n");
    assert_eq!(setting.baleen(&["inspect", "-f", "{{.State.Running}}", "renamed"]).out, "true\n");
}

#[test]
fn without_a_daemon_the_client_says_how_to_start_one() {
    let scratch = Scratch::new();
    let ask = |program: &Path, arguments: &[&str]| {
        let host = format!("unix://{}", scratch.path("nobody.sock").display());
        let output = Command::new(program)
            .args(arguments)
            .env("BALEEN_HOST", &host)
            .env("DOCKER_HOST", "unix:///elsewhere")
            .output();
        Ended::of(output.expect("the client starts"))
    };
    let ours = Path::new(env!("CARGO_BIN_EXE_baleen"));
    let refused = ask(ours, &["ps"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("baleen daemon") && refused.err.contains("nobody.sock"), "{refused:?}");
    assert_eq!(ask(ours, &["run", "bb"]).code, 125);
    let version = ask(ours, &["version"]);
    assert!(version.code == 1 && version.out.starts_with("Client: baleen\n"), "{version:?}");
    // Under docker's name it is docker's client.
    symlink(ours, scratch.path("docker")).expect("a link");
    let unknown = ask(&scratch.path("docker"), &["frobnicate"]);
    assert!(
        unknown.code == 1 && unknown.err.starts_with("docker: unknown command: docker frobnicate\n"),
        "{unknown:?}"
    );
    assert!(ask(&scratch.path("docker"), &["ps", "--help"]).out.starts_with("Usage:  docker ps [OPTIONS]\n"));
    let tls = ask(ours, &["-H", "tcp://127.0.0.1:1", "--tlsverify", "ps"]);
    assert!(tls.code == 1 && tls.err.contains("TLS to a daemon is not implemented yet"), "{tls:?}");
}

#[test]
fn completion_knows_commands_flags_and_the_names_of_the_daemon() {
    let Some(setting) = Setting::new("completion_knows_commands_flags_and_the_names_of_the_daemon") else { return };
    assert_eq!(setting.baleen(&["create", "--network", "none", "--name", "first", "bb"]).code, 0);
    assert_eq!(setting.baleen(&["run", "-d", "--network", "none", "--name", "second", "bb", "sleep", "100"]).code, 0);
    let complete = |words: &[&str]| setting.baleen(&[&["__complete"], words].concat()).out;
    assert_eq!(complete(&["rm", ""]), "first\nsecond\n");
    assert_eq!(complete(&["stop", ""]), "second\n");
    assert_eq!(complete(&["exec", "second", ""]), "");
    assert_eq!(complete(&["run", "--rm", "b"]), "bb\nbb:1\n");
    assert_eq!(complete(&["run", "--network", "n"]), "none\n");
    assert_eq!(complete(&["ps", "--no-t"]), "--no-trunc\n");
    for shell in ["bash", "zsh", "fish"] {
        assert!(setting.baleen(&["completion", shell]).out.contains("__complete"), "{shell}");
    }
    // The shell itself calls the script and shows what the program knows.
    let folder = Path::new(env!("CARGO_BIN_EXE_baleen")).parent().expect("it lies in a folder").display().to_string();
    let script = format!(
        "PATH={folder}:$PATH; source <(baleen completion bash); COMP_WORDS=(baleen stop ''); COMP_CWORD=2; _baleen_complete; echo \"${{COMPREPLY[@]}}\""
    );
    let bash = Command::new("bash")
        .args(["-c", &script])
        .env("DOCKER_HOST", setting.daemon.host())
        .output()
        .expect("bash starts");
    assert_eq!(String::from_utf8_lossy(&bash.stdout), "second\n", "{}", String::from_utf8_lossy(&bash.stderr));
}

#[test]
fn archives_are_written_whole_or_not_at_all() {
    let Some(setting) = Setting::new("archives_are_written_whole_or_not_at_all") else { return };
    assert_eq!(setting.baleen(&["create", "--network", "none", "--name", "kept", "bb"]).code, 0);
    let path = setting.scratch.path("c.tar");
    let name = path.display().to_string();
    assert_eq!(setting.baleen(&["export", "-o", &name, "kept"]).code, 0);
    let listed = tar::Archive::new(fs::File::open(&path).expect("written")).entries().expect("an archive").count();
    assert!(listed > 10, "{listed} entries");
    let before = fs::read(&path).expect("still there");
    assert_eq!(setting.baleen(&["export", "-o", &name, "nobody"]).code, 1);
    assert_eq!(fs::read(&path).expect("still there"), before, "a failed export leaves what was there");
    let left: Vec<_> =
        fs::read_dir(setting.scratch.path("")).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains(".part-")), "{left:?}");
}
