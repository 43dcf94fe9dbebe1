//! The API's transport rules and refusals, on a real daemon, by raw sockets.

use crate::support::{Daemon, Scratch, is_root};

#[test]
fn ping_answers_by_both_methods_on_both_paths_with_the_headers_that_clients_negotiate_by() {
    if !is_root("ping_answers_by_both_methods_on_both_paths_with_the_headers_that_clients_negotiate_by") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(&scratch, "a", |_| {});
    for path in ["/_ping", "/v1.24/_ping", "/v1.44/_ping"] {
        for method in ["GET", "HEAD"] {
            let answer = daemon.exchange(&format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n\r\n"));
            assert_eq!(answer.status, 200);
            for (name, value) in [
                ("Api-Version", "1.44"),
                ("Docker-Experimental", "false"),
                ("Ostype", "linux"),
                ("Builder-Version", "1"),
                ("Swarm", "inactive"),
                ("Cache-Control", "no-cache, no-store, must-revalidate"),
                ("Pragma", "no-cache"),
                ("Content-Type", "text/plain; charset=utf-8"),
                ("Content-Length", if method == "GET" { "2" } else { "0" }),
            ] {
                assert_eq!(answer.header(name), Some(value), "{method} {path} {name}");
            }
            assert!(answer.header("Server").expect("named").starts_with("Docker/"), "{answer:?}");
            assert_eq!(answer.body, if method == "GET" { "OK" } else { "" });
        }
    }
}

#[test]
fn versions_outside_the_announced_ones_are_refused_in_words_that_clients_know() {
    if !is_root("versions_outside_the_announced_ones_are_refused_in_words_that_clients_know") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(&scratch, "a", |_| {});
    let old = daemon.get("/v1.23/version");
    assert_eq!((old.status, old.header("Content-Type")), (400, Some("text/plain; charset=utf-8")));
    let text = "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version";
    assert_eq!(old.body.trim_end(), text);
    let new = daemon.get("/v1.45/version");
    assert_eq!(new.status, 400);
    assert_eq!(new.message(), "client version 1.45 is too new. Maximum supported API version is 1.44");
    let version = daemon.get("/version").json();
    assert_eq!((&version["ApiVersion"], &version["MinAPIVersion"]), (&"1.44".into(), &"1.24".into()));
    assert_eq!(version["Components"][0]["Name"], "Engine");
    assert_eq!(version["Engine"], "baleen");

    let raised = Daemon::start(&scratch, "b", |command| {
        command.env("DOCKER_MIN_API_VERSION", "1.40");
    });
    let refused = raised.get("/v1.39/version");
    assert_eq!(refused.status, 400);
    assert!(refused.message().contains("Minimum supported API version is 1.40"), "{refused:?}");
    assert_eq!(raised.get("/v1.40/version").status, 200);
}

#[test]
fn every_refusal_has_one_form_and_names_what_is_missing() {
    if !is_root("every_refusal_has_one_form_and_names_what_is_missing") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(&scratch, "a", |_| {});
    let swarm = "This node is not a swarm manager. Swarm mode is not supported by this engine.";
    for (method, path, status, message) in [
        ("GET", "/", 404, "page not found"),
        ("GET", "/nowhere", 404, "page not found"),
        ("GET", "/debug/pprof", 404, "page not found"),
        ("POST", "/_ping", 404, "page not found"),
        ("PATCH", "/containers/json", 404, "page not found"),
        ("GET", "/containers/", 404, "page not found"),
        ("GET", "/vx/version", 404, "page not found"),
        ("GET", "/containers/x/json", 404, "No such container: x"),
        ("GET", "/containers//x/json", 404, "No such container: /x"),
        ("GET", "/containers/a%2Fb/json", 404, "No such container: a/b"),
        ("POST", "/containers/x/start", 404, "No such container: x"),
        ("POST", "/containers/x/wait", 404, "No such container: x"),
        ("POST", "/containers/x/wait?condition=bored", 400, "invalid condition: \"bored\""),
        ("DELETE", "/containers/x", 404, "No such container: x"),
        ("POST", "/containers/x/attach", 404, "No such container: x"),
        ("POST", "/containers/x/attach?detachKeys=ctrl-", 400, "Invalid detach keys (ctrl-) provided"),
        ("GET", "/containers/x/logs", 400, "Bad parameters: you must choose at least one stream"),
        ("GET", "/containers/x/logs?stdout=1", 404, "No such container: x"),
        ("POST", "/containers/x/checkpoints", 501, "checkpoint and restore are not supported by this engine"),
        ("POST", "/containers/x/start?checkpoint=c", 400, "checkpoint is not supported by this engine"),
        ("GET", "/containers/x/top", 404, "No such container: x"),
        ("GET", "/containers/x/stats", 404, "No such container: x"),
        ("GET", "/containers/x/changes", 404, "No such container: x"),
        ("POST", "/containers/x/rename?name=y", 404, "No such container: x"),
        ("PUT", "/containers/x/archive?path=/", 501, "container archive is not implemented yet"),
        ("GET", "/exec/x/json", 404, "No such exec instance: x"),
        ("GET", "/containers/json?filters=%7B%22colour%22%3A%5B%22red%22%5D%7D", 400, "invalid filter 'colour'"),
        ("GET", "/containers/json?filters=x", 400, "invalid filter"),
        ("GET", "/images/host:5000/a/b:tag/json", 404, "No such image: host:5000/a/b:tag"),
        ("GET", "/images/host%3A5000%2Fa%2Fb%3Atag/json", 404, "No such image: host:5000/a/b:tag"),
        ("DELETE", "/images/a/b", 404, "No such image: a/b:latest"),
        ("GET", "/images/get?names=x", 501, "image save is not implemented yet"),
        ("POST", "/images/x/push", 404, "An image does not exist locally with the tag: x"),
        ("POST", "/images/create?fromSrc=-", 501, "image import is not implemented yet"),
        ("POST", "/build", 501, "build is not implemented yet"),
        ("POST", "/build?version=2", 501, "BuildKit (version=2) is not supported by this engine; use version=1"),
        ("POST", "/session", 501, "BuildKit is not supported by this engine"),
        ("POST", "/commit", 501, "commit is not implemented yet"),
        ("GET", "/swarm", 503, swarm),
        ("GET", "/nodes", 503, swarm),
        ("POST", "/services/create", 503, swarm),
        ("GET", "/secrets/x", 503, swarm),
        ("POST", "/swarm/init", 501, "Swarm mode is not supported by this engine"),
        ("POST", "/swarm/leave", 503, "This node is not part of a swarm"),
        ("GET", "/plugins/x/json", 404, "plugin \"x\" not found"),
        ("POST", "/plugins/pull", 501, "plugins are not supported by this engine"),
        ("GET", "/networks/x", 404, "network x not found"),
        ("DELETE", "/networks/host", 403, "host is a pre-defined network and cannot be removed"),
        ("POST", "/networks/create", 501, "network create is not implemented yet"),
        ("GET", "/volumes/x", 404, "get x: no such volume"),
        ("GET", "/events?since=2&until=1", 400, "`since` time (2) cannot be after `until` time (1)"),
        ("GET", "/%zz", 400, "malformed path"),
    ] {
        let answer = daemon.request(method, path, "", "");
        assert_eq!((answer.status, answer.message().as_str()), (status, message), "{method} {path}");
    }
    assert_eq!(daemon.exchange("OPTIONS * HTTP/1.1\r\nConnection: close\r\n\r\n").status, 200);
    for (path, body) in [
        ("/containers/json", "[]\n"),
        ("/images/json", "[]\n"),
        ("/plugins", "[]\n"),
        ("/volumes", "{\"Volumes\":[],\"Warnings\":null}\n"),
        ("/events?until=1", ""),
    ] {
        let answer = daemon.get(path);
        assert_eq!((answer.status, answer.body.as_str()), (200, body), "{path}");
    }
}

#[test]
fn json_bodies_are_bounded_and_their_type_is_looked_at() {
    if !is_root("json_bodies_are_bounded_and_their_type_is_looked_at") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(&scratch, "a", |_| {});
    let create = |content_type: &str, body: &str| daemon.request("POST", "/containers/create", content_type, body);
    let refused = create("text/plain", "{}");
    assert_eq!(refused.status, 400);
    assert_eq!(refused.message(), "unsupported Content-Type header (text/plain): must be 'application/json'");
    for empty in ["", " ", "null"] {
        let refused = create("application/json", empty);
        assert_eq!(refused.message(), "config cannot be empty in order to create a container", "{empty:?}");
    }
    let missing =
        create("application/json; charset=utf-8", r#"{"image":"absent","hostconfig":{"networkmode":"none"}}"#);
    assert_eq!((missing.status, missing.message().as_str()), (404, "No such image: absent:latest"));
    assert_eq!(create("application/json", "{} {}").message(), "unexpected content after JSON");
    assert!(create("application/json", "{").message().starts_with("invalid JSON: "));
    assert!(create("application/json", &"[".repeat(1_000_000)).message().contains("recursion limit"));
    let long = format!("{{\"Image\":\"{}\"}}", "x".repeat(4 << 20));
    assert_eq!(create("application/json", &long).status, 413);
    assert_eq!(daemon.get("/_ping").status, 200);
}

#[test]
fn two_lengths_of_one_body_are_refused_by_the_daemon_itself() {
    if !is_root("two_lengths_of_one_body_are_refused_by_the_daemon_itself") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(&scratch, "a", |_| {});
    let answer = daemon.exchange(
        "POST /containers/create HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /_ping HTTP/1.1\r\n\r\n",
    );
    assert_eq!((answer.status, answer.header("Connection")), (400, Some("close")));
    assert!(answer.body.starts_with("{\"message\":") && !answer.body.contains("HTTP/1.1"), "{answer:?}");
}

#[test]
fn endless_streams_end_with_the_daemon() {
    if !is_root("endless_streams_end_with_the_daemon") {
        return;
    }
    let scratch = Scratch::new();
    let mut daemon = Daemon::start(&scratch, "a", |_| {});
    std::thread::scope(|scope| {
        let daemon_of_reader = &daemon;
        let (sender, open) = std::sync::mpsc::channel();
        let reader = scope.spawn(move || {
            use std::io::{Read, Write};
            let mut stream = std::os::unix::net::UnixStream::connect(&daemon_of_reader.socket).expect("it listens");
            stream.set_read_timeout(Some(crate::support::PATIENCE)).expect("a timeout");
            stream.write_all(b"GET /events HTTP/1.1\r\n\r\n").expect("it reads");
            let mut head = [0; 1024];
            let length = stream.read(&mut head).expect("the head comes at once");
            assert!(head[..length].starts_with(b"HTTP/1.1 200 OK\r\n"));
            sender.send(()).expect("the test waits");
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).expect("a clean end");
        });
        open.recv_timeout(crate::support::PATIENCE).expect("the stream opens");
        daemon.signal(rustix::process::Signal::TERM);
        reader.join().expect("the reader ends");
    });
    assert!(daemon.wait().success());
}

#[test]
fn clients_that_break_off_leave_no_descriptor_behind() {
    if !is_root("clients_that_break_off_leave_no_descriptor_behind") {
        return;
    }
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    let scratch = Scratch::new();
    let daemon = Daemon::start(&scratch, "a", |_| {});
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it runs").count();
    let before = descriptors();
    let broken = [
        "",
        "GET /x",
        "GET /events HTTP/1.1\r\n\r\n",
        "POST /containers/create HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
        "POST /images/load HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        "POST /containers/x/attach?stream=1&stdin=1 HTTP/1.1\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\nabc",
    ];
    for _ in 0..100 {
        for text in broken {
            let mut stream = UnixStream::connect(&daemon.socket).expect("it listens");
            stream.write_all(text.as_bytes()).expect("it reads");
        }
    }
    let start = std::time::Instant::now();
    while descriptors() > before {
        assert!(start.elapsed() < crate::support::PATIENCE, "{} descriptors, {before} at first", descriptors());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(daemon.get("/_ping").status, 200);
}
