//! Exec in a container without memory, beside Debian's `dockerd` in the same table.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_tests::archive::Entry;
use baleen_tests::command::{Finished, run, succeed, wait_for};
use baleen_tests::daemon::Daemon;
use baleen_tests::dockerd::Dockerd;
use baleen_tests::image::{Image, Layer};
use baleen_tests::needs_root;
use baleen_tests::network::Network;
use baleen_tests::scratch::Scratch;

/// Holds anonymous memory until so many kB are left of its limit, then waits. It asks for no memory by itself.
const HOG: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
static long number(const char *one, const char *other) {
    char text[32];
    int file = open(one, O_RDONLY);
    if (file < 0) file = open(other, O_RDONLY);
    long length = read(file, text, sizeof text - 1);
    close(file);
    text[length > 0 ? length : 0] = 0;
    return atol(text);
}
int main(int count, char **words) {
    long left = atol(words[1]) * 1024;
    long limit = number("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max");
    while (limit - number("/sys/fs/cgroup/memory/memory.usage_in_bytes", "/sys/fs/cgroup/memory.current") > left) {
        volatile char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        *page = 1;
    }
    write(1, "full\n", 5);
    for (;;) pause();
}
"#;
const EXECS: usize = 20;

struct Engine {
    name: &'static str,
    socket: PathBuf,
    client_folder: PathBuf,
    cgroup_parent: String,
}

/// What one row of the table says of one engine.
#[derive(Debug, Default)]
struct Row {
    ran: usize,
    texts: Vec<String>,
    hog_lives: bool,
    oom_kills: u64,
}

impl Engine {
    fn docker(&self, arguments: &[&str]) -> Result<Finished> {
        let mut command = Command::new("docker");
        command
            .args(arguments)
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .env("DOCKER_CONFIG", &self.client_folder);
        run(&mut command, None, Duration::from_secs(120))
    }

    fn row(&self, limit_mib: u64, left_kb: u64) -> Result<Option<Row>> {
        let limit = format!("{limit_mib}m");
        let left = left_kb.to_string();
        let options = ["run", "-d", "--name", "hog", "--network", "none", "-m", &limit, "--memory-swap", &limit];
        let begun = self.docker(&[&options[..], &["hog", "/hog", &left]].concat())?;
        let id = begun.stdout().trim().to_owned();
        let full = || self.docker(&["logs", "hog"]).is_ok_and(|log| log.stdout().contains("full"));
        if begun.code != 0 || wait_for("the hog to be full", Duration::from_secs(20), || full().then_some(())).is_err()
        {
            self.docker(&["rm", "-f", "hog"])?;
            return Ok(None);
        }
        let group = [
            format!("/sys/fs/cgroup/memory{}/{id}", self.cgroup_parent),
            format!("/sys/fs/cgroup{}/{id}", self.cgroup_parent),
        ];
        let kills = || group.iter().find_map(|folder| oom_kills(Path::new(folder)));
        let before = kills().context("no count of kills")?;
        let mut row = Row::default();
        for _ in 0..EXECS {
            let exec = self.docker(&["exec", "hog", "/true"])?;
            if exec.code == 0 {
                row.ran += 1;
            } else {
                row.texts.push(exec.output().trim().to_owned());
            }
        }
        row.hog_lives = self.docker(&["inspect", "-f", "{{.State.Running}}", "hog"])?.stdout().trim() == "true";
        // A group that has gone with its hog has counted one kill at least.
        row.oom_kills = kills().map_or(1, |now| now - before);
        self.docker(&["rm", "-f", "hog"])?.ok()?;
        Ok(Some(row))
    }
}

fn oom_kills(group: &Path) -> Option<u64> {
    let text = fs::read_to_string(group.join("memory.events"))
        .or_else(|_| fs::read_to_string(group.join("memory.oom_control")))
        .ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[test]
fn an_exec_without_memory_runs_or_names_the_limit_where_docker_s_engine_kills() -> Result<()> {
    needs_root!("an_exec_without_memory_runs_or_names_the_limit_where_docker_s_engine_kills");
    let scratch = Scratch::new("lowmem")?;
    let mut programs = Vec::new();
    for (name, source) in [("hog", HOG), ("true", "int main(void) { return 0; }")] {
        let (file, program) = (scratch.join(format!("{name}.c")), scratch.join(name));
        fs::write(&file, source)?;
        succeed("gcc", &["-static", "-O1", "-o", &program.to_string_lossy(), &file.to_string_lossy()])?;
        programs.push(Entry::file(name, fs::read(&program)?).mode(0o755));
    }
    let mut entries: Vec<Entry> = ["dev", "etc", "proc", "sys"].into_iter().map(Entry::folder).collect();
    entries.extend(programs);
    let archive = scratch.join("image.tar");
    fs::write(&archive, Image::new(vec![Layer::of(&entries)?], &["/hog", "0"]).docker_archive("hog:latest"))?;

    let daemon = Daemon::start(&scratch)?;
    let network = Network::new()?;
    let dockerd = Dockerd::start(&scratch, &network, &["--iptables=false", "--bridge=none"], &[])?;
    let engines = [
        Engine {
            name: "baleen",
            socket: daemon.socket(),
            client_folder: daemon.client_folder(),
            cgroup_parent: daemon.cgroup_parent().to_owned(),
        },
        Engine {
            name: "dockerd",
            socket: dockerd.socket(),
            client_folder: dockerd.client_folder(),
            cgroup_parent: dockerd.cgroup_parent().to_owned(),
        },
    ];
    for engine in &engines {
        engine.docker(&["load", "-q", "-i", &archive.to_string_lossy()])?.ok()?;
    }
    let lefts: &[u64] =
        if std::env::var_os("BALEEN_SOAK").is_some() { &[2000, 900, 600, 300, 100, 20] } else { &[900, 100] };
    println!("limit  left     engine   ran    hog    oom_kill");
    for limit_mib in [8, 16, 32] {
        for &left_kb in lefts {
            // Both at once: neither knows of the other.
            let rows = std::thread::scope(|scope| {
                let threads = engines.each_ref().map(|engine| scope.spawn(move || engine.row(limit_mib, left_kb)));
                threads.map(|thread| thread.join().expect("the thread of an engine"))
            });
            for (engine, row) in engines.iter().zip(rows) {
                let begin = format!("{limit_mib:>2} MiB {left_kb:>5} kB {:<8}", engine.name);
                let Some(row) = row.with_context(|| begin.clone())? else {
                    println!("{begin} the container does not start");
                    assert!(engine.name != "baleen", "{begin}: it does not start:\n{}", daemon.log());
                    continue;
                };
                let lives = if row.hog_lives { "lives" } else { "killed" };
                println!("{begin} {:>2}/{EXECS}  {lives:<6} {}", row.ran, row.oom_kills);
                if engine.name != "baleen" {
                    continue;
                }
                assert!(row.hog_lives && row.oom_kills == 0, "{begin}: {row:?}");
                assert!(left_kb < 900 || row.ran == EXECS, "{begin}: {row:?}");
                let bytes = (limit_mib << 20).to_string();
                assert!(
                    row.texts.iter().all(|text| text.contains(&bytes) && text.contains("no memory")),
                    "{begin}: {row:?}"
                );
            }
        }
    }
    Ok(())
}
