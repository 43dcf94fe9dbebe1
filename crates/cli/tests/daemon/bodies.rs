//! What our client asks for is what docker's client asks for, flag by flag: both send their request to a server that keeps it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::Value;

use crate::support::{PATIENCE, Scratch, docker};

/// Command lines, each with what it is about to ask. A line is left out where docker's own client does not know its flag.
const CREATE: &[&str] = &[
    "IMAGE",
    "IMAGE ls -l /",
    "-it IMAGE",
    "-i IMAGE cat",
    "-a stdout -a stderr IMAGE",
    "--name web --hostname h --domainname d.example IMAGE",
    "-e A=1 -e B -e BALEEN_TEST_OURS --env-file FILE IMAGE",
    "-l a=b -l c IMAGE",
    "-u 5:6 -w /srv --entrypoint /bin/x IMAGE y z",
    "--entrypoint= IMAGE y",
    "--stop-signal USR1 --stop-timeout 7 IMAGE",
    "--rm --init IMAGE",
    "--restart on-failure:3 IMAGE",
    "--restart unless-stopped IMAGE",
    "--network none IMAGE",
    "--network host IMAGE",
    "--network container:other IMAGE",
    "--network mine --ip 172.30.0.7 --ip6 fd00::7 --network-alias a --network-alias b --link x:y IMAGE",
    // A client that knows --annotation puts the address into the endpoint, as API 1.44 wants it.
    "--annotation a=b --network mine --mac-address 92:d0:c6:0a:29:33 --link-local-ip 169.254.9.9 IMAGE",
    "-p 80 -p 8080:81 -p 127.0.0.1:53:53/udp -p [::1]:9:9 -p 7000-7002:70-72 IMAGE",
    "-p 127.0.0.1::5000 -p 9000-9010:90 --expose 6000-6002/udp -P IMAGE",
    "--dns 9.9.9.9 --dns-search example --dns-option ndots:1 --add-host h:10.0.0.1 IMAGE",
    "-v /host:/in:ro -v name:/data -v /anonymous -v name2:/b:nocopy,rw IMAGE",
    "--tmpfs /run --tmpfs /tmp:size=1m,mode=1777 IMAGE",
    "--mount type=bind,source=/host,target=/in,readonly IMAGE",
    "--mount type=bind,src=/host,dst=/in,bind-propagation=rslave --mount type=tmpfs,destination=/t,tmpfs-size=1m,tmpfs-mode=700 IMAGE",
    "--mount type=volume,source=v,target=/v,volume-nocopy=true,volume-label=a=b,volume-driver=local,volume-opt=type=tmpfs IMAGE",
    "--mount source=v,target=/v IMAGE",
    "--volumes-from other:ro --volume-driver local IMAGE",
    "--read-only --privileged IMAGE",
    "--cap-add NET_ADMIN --cap-drop ALL --group-add 27 --group-add audio IMAGE",
    "--security-opt no-new-privileges --security-opt seccomp=unconfined IMAGE",
    "--security-opt apparmor=unconfined --security-opt label=disable IMAGE",
    "--security-opt systempaths=unconfined IMAGE",
    "--security-opt seccomp=PROFILE IMAGE",
    "--pid host --ipc private --uts host --userns host --cgroupns private IMAGE",
    "--pid container:x --ipc container:x --cgroup-parent /p --runtime baleen IMAGE",
    "-m 64m --memory-reservation 32m --memory-swap 128m --memory-swappiness 10 --shm-size 8m IMAGE",
    "-m 64m --memory-swap -1 --oom-kill-disable --oom-score-adj 100 IMAGE",
    "-c 512 --cpus 1.5 --cpuset-cpus 0,1 --cpuset-mems 0 IMAGE",
    "--cpu-period 50000 --cpu-quota 25000 --cpu-rt-period 1000000 --cpu-rt-runtime 950000 IMAGE",
    "--pids-limit 99 IMAGE",
    "--pids-limit -1 IMAGE",
    "--blkio-weight 300 --blkio-weight-device /dev/null:200 IMAGE",
    "--device-read-bps /dev/null:1mb --device-write-bps /dev/null:2mb --device-read-iops /dev/null:10 --device-write-iops /dev/null:20 IMAGE",
    "--device /dev/null --device /dev/zero:/dev/nought:r --device-cgroup-rule 'c_10:200_rwm' IMAGE",
    "--ulimit nofile=10:20 --ulimit nproc=5 IMAGE",
    "--sysctl net.core.somaxconn=100 --storage-opt size=1G IMAGE",
    "--log-driver json-file --log-opt max-size=1m --log-opt max-file=2 IMAGE",
    "--health-cmd true --health-interval 5s --health-timeout 1500ms --health-retries 2 --health-start-period 1m IMAGE",
    "--health-cmd true --health-start-interval 1s IMAGE",
    "--no-healthcheck IMAGE",
    "--annotation a=b IMAGE",
    "--platform linux/amd64 IMAGE",
    "--gpus all IMAGE",
];

/// A server that says yes to whatever is created and keeps what was asked.
struct Recorder {
    socket: PathBuf,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Recorder {
    fn start(scratch: &Scratch) -> Recorder {
        let socket = scratch.path("recorder.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = asked.clone();
        // It ends with the test program: nothing else is held by it.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = kept.clone();
                std::thread::spawn(move || serve(stream, &kept));
            }
        });
        Recorder { socket, asked }
    }

    /// Runs a client; answers what it asked, without what every client asks first.
    fn ask(&self, program: &Path, arguments: &[String]) -> (Vec<(String, Value)>, bool, String) {
        self.asked.lock().expect("no panic").clear();
        let output = Command::new(program)
            .args(arguments)
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .env("DOCKER_CONFIG", self.socket.parent().expect("it lies in a folder"))
            .env_remove("DOCKER_CONTEXT")
            .env_remove("BALEEN_HOST")
            .env("BALEEN_TEST_OURS", "ours")
            .stdin(Stdio::null())
            .output()
            .expect("the client starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (self.asked.lock().expect("no panic").drain(..).collect(), output.status.success(), said)
    }
}

fn serve(stream: UnixStream, kept: &Mutex<Vec<(String, Value)>>) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut writer = stream.try_clone().expect("a handle");
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if !matches!(reader.read_line(&mut head), Ok(1..)) {
                return;
            }
        }
        let first = head.lines().next().unwrap_or_default().to_owned();
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length: usize = length.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or_default();
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let target =
            target.split_once("/v1.").map_or(target, |(_, rest)| rest.split_once('/').map_or(target, |(_, rest)| rest));
        let target = target.trim_start_matches('/');
        let (status, answer) = if target.starts_with("_ping") {
            ("200 OK", if method == "HEAD" { "" } else { "OK" }.to_owned())
        } else {
            // Credentials are what a pull says beside its query.
            let auth = head
                .lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(name, _)| name.eq_ignore_ascii_case("x-registry-auth"));
            let body = match auth.and_then(|(_, value)| URL_SAFE.decode(value).ok()) {
                Some(auth) => serde_json::from_slice(&auth).unwrap_or(Value::Null),
                None => serde_json::from_slice(&body).unwrap_or(Value::Null),
            };
            kept.lock().expect("no panic").push((format!("{method} {target}"), body));
            let id = "0".repeat(64);
            ("201 Created", format!("{{\"Id\":\"{id}\",\"ID\":\"{id}\",\"Name\":\"n\",\"Warnings\":[]}}\n"))
        };
        let reply = format!(
            "HTTP/1.1 {status}\r\nApi-Version: 1.44\r\nOstype: linux\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        );
        if writer.write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

/// A body without what says nothing: nulls, zeros, empty texts, lists and objects. What is the same in other words is made the
/// same.
fn said(value: &Value) -> Option<Value> {
    match value {
        Value::Null | Value::Bool(false) => None,
        Value::Number(number) if number.as_f64() == Some(0.0) => None,
        Value::String(text) if text.is_empty() => None,
        Value::Array(items) => {
            (!items.is_empty()).then(|| items.iter().map(|item| said(item).unwrap_or(Value::Null)).collect())
        }
        Value::Object(members) => {
            let kept: serde_json::Map<String, Value> = members
                .iter()
                .filter_map(|(key, value)| match key.as_str() {
                    // Sets of names: that a name is there is what is said.
                    "ExposedPorts" | "Volumes" | "Tmpfs" => {
                        value.as_object().filter(|set| !set.is_empty()).map(|_| (key.clone(), value.clone()))
                    }
                    // With or without the prefix, by version.
                    "CapAdd" | "CapDrop" => {
                        let names = value.as_array().into_iter().flatten().filter_map(Value::as_str);
                        let names: Vec<&str> = names.map(|name| name.trim_start_matches("CAP_")).collect();
                        (!names.is_empty()).then(|| (key.clone(), names.into()))
                    }
                    // Docker's client sends these in any order.
                    "Binds" | "Config" | "Env" if value.is_array() => {
                        let mut items: Vec<Value> = value.as_array().into_iter().flatten().filter_map(said).collect();
                        items.sort_by_key(Value::to_string);
                        (!items.is_empty()).then(|| (key.clone(), items.into()))
                    }
                    // Without a meaning since API 1.44, and sent by clients of before.
                    "CheckDuplicate" => None,
                    // Of a terminal that neither of the two has here.
                    "ConsoleSize" => None,
                    // -1 is the default that some versions spell out.
                    "MemorySwappiness" if *value == -1 => None,
                    // What every container on the default network has, in the words of some versions.
                    "NetworkMode" if *value == "default" || *value == "bridge" => None,
                    "RestartPolicy" if value["Name"] == "no" || value["Name"] == "" => None,
                    _ => said(value).map(|value| (key.clone(), value)),
                })
                .collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        value => Some(value.clone()),
    }
}

fn help_of(docker: &Path, command: &[&str]) -> String {
    let output = Command::new(docker).args(command).arg("--help").output().expect("docker starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether docker's client knows every long flag of a line.
fn knows(help: &str, line: &str) -> bool {
    line.split(' ').filter(|word| word.starts_with("--")).all(|flag| {
        let flag = flag.split('=').next().unwrap_or(flag);
        help.split_whitespace().any(|word| word == flag)
    })
}

/// A target's query as a map, since its order says nothing.
fn query(target: &str) -> (String, BTreeMap<String, String>) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('=')).filter(|(_, value)| !value.is_empty());
    (
        path.to_owned(),
        pairs
            .map(|(key, value)| (key.to_owned(), value.replace("docker.io%2F", "").replace("library%2F", "")))
            .collect(),
    )
}

#[test]
fn a_container_is_asked_for_as_docker_asks_for_it_flag_by_flag() {
    let Some(docker) = docker("a_container_is_asked_for_as_docker_asks_for_it_flag_by_flag") else { return };
    let scratch = Scratch::new();
    let recorder = Recorder::start(&scratch);
    fs::write(scratch.path("env"), "# a comment\n\nF=from a file\nBALEEN_TEST_OURS\nABSENT_FROM_HERE\n")
        .expect("a file");
    fs::write(scratch.path("profile.json"), r#"{ "defaultAction": "SCMP_ACT_ALLOW" }"#).expect("a file");
    let ours = Path::new(env!("CARGO_BIN_EXE_baleen"));
    let help = help_of(&docker, &["create"]);
    let mut compared = 0;
    let mut different = Vec::new();
    for line in CREATE.iter().filter(|line| knows(&help, line)) {
        let words = line.split(' ').map(|word| match word {
            "IMAGE" => "image:1".to_owned(),
            "FILE" => scratch.path("env").display().to_string(),
            "seccomp=PROFILE" => format!("seccomp={}", scratch.path("profile.json").display()),
            word => word.trim_matches('\'').replace('_', if word.starts_with('\'') { " " } else { "_" }),
        });
        let arguments: Vec<String> = ["create".to_owned()].into_iter().chain(words).collect();
        let (theirs, they_ended, they_said) = recorder.ask(&docker, &arguments);
        let (own, we_ended, we_said) = recorder.ask(ours, &arguments);
        // A client of a machine without that device or profile refuses by itself: nothing to compare.
        if !they_ended {
            eprintln!("docker refuses {line:?}: {they_said}");
            continue;
        }
        assert!(we_ended, "{line}: {we_said}");
        compared += 1;
        let ([(their_target, their_body)], [(our_target, our_body)]) = (theirs.as_slice(), own.as_slice()) else {
            different.push(format!("{line}: not one request each: {theirs:?} {own:?}"));
            continue;
        };
        let their_platform = query(their_target);
        if their_platform != query(our_target) {
            different.push(format!("{line}: {their_target} and {our_target}"));
        }
        // We say it in the old place too, for old daemons.
        let mut our_body = our_body.clone();
        if let Some(body) = our_body.as_object_mut() {
            body.remove("MacAddress");
        }
        let our_body = &our_body;
        if said(their_body) != said(our_body) {
            different.push(format!(
                "{line}:\n  docker {}\n  baleen {}",
                said(their_body).unwrap_or_default(),
                said(our_body).unwrap_or_default()
            ));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    println!("{compared} of {} command lines are asked in the same words", CREATE.len());
    assert!(compared >= 45, "only {compared} command lines could be compared");
}

#[test]
fn networks_volumes_and_limits_are_asked_for_as_docker_asks_for_them() {
    let Some(docker) = docker("networks_volumes_and_limits_are_asked_for_as_docker_asks_for_them") else { return };
    let scratch = Scratch::new();
    let recorder = Recorder::start(&scratch);
    let ours = Path::new(env!("CARGO_BIN_EXE_baleen"));
    let mut different = Vec::new();
    for line in [
        "volume create v",
        "volume create --driver local --opt type=tmpfs --opt device=tmpfs --label a=b v",
        "network create n",
        "network create --internal --label a=b --opt com.docker.network.bridge.name=br9 n",
        "network create --subnet 10.9.0.0/16 --gateway 10.9.0.1 --ip-range 10.9.4.0/24 --aux-address host=10.9.0.9 n",
        "network create --ipv6 --subnet fd00:9::/64 --subnet 10.9.0.0/16 --gateway 10.9.0.1 --gateway fd00:9::1 n",
        "network connect --ip 10.9.0.7 --alias a --alias b --link x:y n c",
        "network disconnect -f n c",
        "update -m 64m --memory-swap 128m --cpus 0.5 --pids-limit 10 --restart always c",
        "stop -t 3 c",
        "kill -s HUP c",
        "rm -f -v c",
        "rename c d",
        "pause c",
        "tag host:5000/a:1 b:2",
        "rmi -f host:5000/a:1",
        "volume rm -f v",
        "network rm n",
    ] {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let [(theirs, ..), (own, ..)] = [recorder.ask(&docker, &arguments), recorder.ask(ours, &arguments)];
        let normal = |asked: &[(String, Value)]| -> Vec<_> {
            // Some versions look before they act.
            let acts = asked.iter().filter(|(target, _)| !target.starts_with("GET "));
            acts.map(|(target, body)| (query(target), said(body).unwrap_or_default())).collect()
        };
        let (theirs, own) = (normal(&theirs), normal(&own));
        if theirs != own {
            different.push(format!("{line}:\n  docker {theirs:?}\n  baleen {own:?}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn credentials_go_with_a_pull_as_docker_sends_them() {
    let Some(docker) = docker("credentials_go_with_a_pull_as_docker_sends_them") else { return };
    let scratch = Scratch::new();
    let recorder = Recorder::start(&scratch);
    let config =
        r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYXNz"},"r.example:5000":{"auth":"YTpiOmM="}}}"#;
    fs::write(scratch.path("config.json"), config).expect("a file");
    let ours = Path::new(env!("CARGO_BIN_EXE_baleen"));
    let mut different = Vec::new();
    for line in [
        "pull busybox",
        "pull r.example:5000/a/b:1",
        "pull r.example:5000/a@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "pull other.example/a",
        "pull -q --platform linux/arm64 u/a:2",
    ] {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let [(theirs, they_ended, _), (own, we_ended, said_by_us)] =
            [recorder.ask(&docker, &arguments), recorder.ask(ours, &arguments)];
        assert!(they_ended && we_ended, "{line}: {said_by_us}");
        let secrets = |asked: &[(String, Value)]| -> Vec<_> {
            let of = |body: &Value| {
                ["username", "password", "identitytoken"]
                    .map(|field| body[field].as_str().unwrap_or_default().to_owned())
            };
            // Some versions look before they act.
            let acts = asked.iter().filter(|(target, _)| !target.starts_with("GET "));
            acts.map(|(target, body)| (query(target), of(body))).collect()
        };
        let (theirs, own) = (secrets(&theirs), secrets(&own));
        if theirs != own {
            different.push(format!("{line}:\n  docker {theirs:?}\n  baleen {own:?}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}
