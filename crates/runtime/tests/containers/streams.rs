//! Attached clients and terminals.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use baleen_runtime::logs::LogStream;
use baleen_runtime::protocol::{STREAM_HEADER_BYTES, StreamKind, parse_stream_header, stream_header};
use baleen_runtime::{AttachOptions, Shim};

use crate::Test;
use crate::fixture::{Fixture, eventually, shim_pid};

pub(crate) const TESTS: &[Test] = &[
    ("a_client_attached_before_start_loses_no_byte", a_client_attached_before_start_loses_no_byte),
    (
        "input_is_closed_by_a_half_closed_client_and_output_still_comes",
        input_is_closed_by_a_half_closed_client_and_output_still_comes,
    ),
    ("an_empty_frame_ends_the_input_too", an_empty_frame_ends_the_input_too),
    ("input_stays_open_unless_it_is_to_be_closed", input_stays_open_unless_it_is_to_be_closed),
    ("a_client_gets_only_the_streams_it_wants", a_client_gets_only_the_streams_it_wants),
    ("megabytes_pass_through_both_ways", megabytes_pass_through_both_ways),
    (
        "a_stalled_reader_holds_the_container_up_in_bounded_memory",
        a_stalled_reader_holds_the_container_up_in_bounded_memory,
    ),
    ("a_reader_that_goes_away_harms_nobody", a_reader_that_goes_away_harms_nobody),
    ("a_terminal_has_a_size_and_follows_changes", a_terminal_has_a_size_and_follows_changes),
    ("a_terminal_passes_keys_and_answers", a_terminal_passes_keys_and_answers),
    (
        "nonsense_on_the_socket_is_refused_and_the_container_goes_on",
        nonsense_on_the_socket_is_refused_and_the_container_goes_on,
    ),
    ("thousands_of_broken_connections_leave_nothing_behind", thousands_of_broken_connections_leave_nothing_behind),
];

const OUT: AttachOptions = AttachOptions { stdin: false, stdout: true, stderr: true, close_stdin: false };
const BOTH: AttachOptions = AttachOptions { stdin: true, stdout: true, stderr: true, close_stdin: true };

fn attach(shim: &Shim, options: AttachOptions) -> UnixStream {
    let stream = shim.attach(options).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

fn frame(stream: &mut UnixStream) -> Option<(StreamKind, Vec<u8>)> {
    let mut header = [0; STREAM_HEADER_BYTES];
    match stream.read_exact(&mut header) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
        other => other.unwrap(),
    }
    let (kind, length) = parse_stream_header(header, 1 << 20).unwrap();
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).unwrap();
    Some((kind, payload))
}

/// Everything until the end of the stream: output and error output.
fn rest(stream: &mut UnixStream) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some((kind, payload)) = frame(stream) {
        if kind == StreamKind::Stdout { &mut out } else { &mut err }.extend(payload);
    }
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn send(stream: &mut UnixStream, payload: &[u8]) {
    stream.write_all(&stream_header(StreamKind::Stdin, u32::try_from(payload.len()).unwrap())).unwrap();
    stream.write_all(payload).unwrap();
}

fn with_input(script: &str) -> Fixture {
    let mut fixture = Fixture::sh(script);
    fixture.spec.open_stdin = true;
    fixture
}

fn a_client_attached_before_start_loses_no_byte() {
    let fixture = Fixture::sh("echo first; seq 1 50000; echo problem >&2; echo -n last");
    let shim = fixture.create().unwrap();
    let mut one = attach(&shim, OUT);
    let mut two = attach(&shim, OUT);
    shim.start().unwrap();
    let other = std::thread::spawn(move || rest(&mut two));
    let (out, err) = rest(&mut one);
    assert!(out.starts_with("first\n1\n2\n") && out.ends_with("\n50000\nlast"), "{} bytes", out.len());
    assert_eq!(err, "problem\n");
    assert_eq!(other.join().unwrap(), (out.clone(), err));
    assert_eq!(shim.wait().unwrap().exit_code, 0);
    assert_eq!(fixture.logged(LogStream::Stdout), out);
}

fn input_is_closed_by_a_half_closed_client_and_output_still_comes() {
    let fixture = with_input("cat; echo end; exit 7");
    let shim = fixture.create().unwrap();
    let mut client = attach(&shim, BOTH);
    send(&mut client, b"before start\n");
    shim.start().unwrap();
    send(&mut client, b"after\n");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut client).0, "before start\nafter\nend\n");
    assert_eq!(shim.wait().unwrap().exit_code, 7);
}

fn an_empty_frame_ends_the_input_too() {
    let fixture = with_input("cat; echo end");
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    let mut client = attach(&shim, BOTH);
    send(&mut client, b"x\n");
    send(&mut client, b"");
    assert_eq!(rest(&mut client).0, "x\nend\n");
}

fn input_stays_open_unless_it_is_to_be_closed() {
    let fixture = with_input("cat; echo end");
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    let mut first = attach(&shim, AttachOptions { close_stdin: false, ..BOTH });
    send(&mut first, b"one\n");
    assert_eq!(frame(&mut first).unwrap().1, b"one\n");
    drop(first);
    let mut second = attach(&shim, AttachOptions { close_stdin: false, ..BOTH });
    send(&mut second, b"two\n");
    assert_eq!(frame(&mut second).unwrap().1, b"two\n");
    shim.close_stdin().unwrap();
    assert_eq!(rest(&mut second).0, "end\n");
}

fn a_client_gets_only_the_streams_it_wants() {
    let fixture = Fixture::sh("echo out; echo err >&2");
    let shim = fixture.create().unwrap();
    let mut out = attach(&shim, AttachOptions { stderr: false, ..OUT });
    let mut err = attach(&shim, AttachOptions { stdout: false, ..OUT });
    shim.start().unwrap();
    assert_eq!(rest(&mut out), ("out\n".to_owned(), String::new()));
    assert_eq!(rest(&mut err), (String::new(), "err\n".to_owned()));
}

fn megabytes_pass_through_both_ways() {
    let mut fixture = with_input("cat");
    fixture.log = None;
    let shim = fixture.create().unwrap();
    let mut client = attach(&shim, BOTH);
    shim.start().unwrap();
    let wanted: Vec<u8> = (0..5_000_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut writer, payload) = (client.try_clone().unwrap(), wanted.clone());
    let sender = std::thread::spawn(move || {
        payload.chunks(60_000).for_each(|chunk| send(&mut writer, chunk));
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    while let Some((_, payload)) = frame(&mut client) {
        got.extend(payload);
    }
    sender.join().unwrap();
    assert!(got == wanted, "{} of {} bytes", got.len(), wanted.len());
}

fn private_memory_kb(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    field("Private_Dirty:") + field("Private_Clean:")
}

fn a_stalled_reader_holds_the_container_up_in_bounded_memory() {
    let mut fixture = Fixture::new(&["yes"]);
    fixture.log = None;
    let shim = fixture.create().unwrap();
    let pid = shim_pid(&fixture);
    let mut stalled = attach(&shim, OUT);
    shim.start().unwrap();
    let written = || -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/io", shim.pid())).unwrap();
        text.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
    };
    let mut before = 0;
    eventually("the program waits", || {
        std::thread::sleep(Duration::from_millis(50));
        let now = written();
        now > 0 && std::mem::replace(&mut before, now) == now
    });
    assert!(before < 2 << 20, "{before} bytes were buffered");
    let memory = private_memory_kb(pid);
    assert!(memory < 8 << 10, "{memory} kB");
    assert!(frame(&mut stalled).is_some());
    eventually("reading lets it go on", || {
        for _ in 0..100 {
            frame(&mut stalled).unwrap();
        }
        written() > before
    });
}

fn a_reader_that_goes_away_harms_nobody() {
    let fixture = Fixture::sh("seq 1 100000; echo done");
    let shim = fixture.create().unwrap();
    let mut leaver = attach(&shim, OUT);
    let mut stayer = attach(&shim, OUT);
    shim.start().unwrap();
    frame(&mut leaver).unwrap();
    drop(leaver);
    assert!(rest(&mut stayer).0.ends_with("100000\ndone\n"));
    assert_eq!(shim.wait().unwrap().exit_code, 0);
}

fn a_terminal_has_a_size_and_follows_changes() {
    let mut fixture =
        Fixture::sh("tty; stty size; trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.05; done");
    fixture.spec.tty = true;
    let shim = fixture.create().unwrap();
    shim.resize(33, 77).unwrap();
    let mut client = attach(&shim, OUT);
    shim.start().unwrap();
    eventually("it is ready", || fixture.logged(LogStream::Stdout).contains("ready"));
    shim.resize(41, 99).unwrap();
    let (out, err) = rest(&mut client);
    let lines: Vec<&str> = out.split("\r\n").collect();
    assert!(lines[0] == "/dev/pts/0" || lines[0] == "/dev/console", "{out:?}");
    assert_eq!(lines[1..], ["33 77", "ready", "41 99", ""]);
    assert_eq!(err, "");
    assert_eq!(shim.wait().unwrap().exit_code, 5);
    assert!(fixture.logged(LogStream::Stdout).contains("41 99\r\n"));
    let plain = Fixture::new(&["sleep", "1000"]);
    assert!(plain.create().unwrap().resize(1, 1).is_err());
}

fn a_terminal_passes_keys_and_answers() {
    let mut fixture = with_input("stty -echo; echo ready; cat; exit 3");
    fixture.spec.tty = true;
    let shim = fixture.create().unwrap();
    let mut client = attach(&shim, BOTH);
    shim.start().unwrap();
    let mut text = String::new();
    while !text.contains("ready") {
        text.push_str(std::str::from_utf8(&frame(&mut client).unwrap().1).unwrap());
    }
    send(&mut client, b"hello\n\x04");
    assert_eq!(rest(&mut client).0, "hello\r\n");
    assert_eq!(shim.wait().unwrap().exit_code, 3);
}

fn nonsense_on_the_socket_is_refused_and_the_container_goes_on() {
    let fixture = Fixture::new(&["sleep", "1000"]);
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    let connect = || {
        let stream = baleen_runtime::client::connect_socket(&fixture.dir()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    };
    let mut answer = Vec::new();
    let mut long = connect();
    long.write_all(&[0xff; 64]).unwrap();
    long.read_to_end(&mut answer).unwrap_or_default();
    assert!(String::from_utf8_lossy(&answer).contains("longer than"), "{answer:?}");
    for json in [&b"{}"[..], b"[]", br#"{"version":1,"verb":"teleport"}"#, br#"{"version":9,"verb":"start"}"#] {
        let mut stream = connect();
        stream.write_all(&u32::try_from(json.len()).unwrap().to_le_bytes()).unwrap();
        stream.write_all(json).unwrap();
        answer.clear();
        stream.read_to_end(&mut answer).unwrap_or_default();
        assert!(String::from_utf8_lossy(&answer).contains("refused"), "{answer:?}");
    }
    let mut client = attach(&shim, BOTH);
    client.write_all(&[9; 64]).unwrap();
    assert!(frame(&mut client).is_none());
    assert!(shim.start().is_err(), "a second start is refused");
    assert_eq!(shim.state().unwrap().pid, shim.pid());
}

fn thousands_of_broken_connections_leave_nothing_behind() {
    let fixture = Fixture::new(&["sleep", "1000"]);
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    let pid = shim_pid(&fixture);
    let count = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = count();
    for round in 0..3_000 {
        if round % 3 == 0 {
            drop(shim.attach(BOTH).unwrap());
        } else {
            drop(baleen_runtime::client::connect_socket(&fixture.dir()).unwrap());
        }
    }
    eventually("every descriptor is closed", || count() <= before);
    let memory = private_memory_kb(pid);
    println!("    private memory of the shim after 3000 connections: {memory} kB");
    assert!(memory < 8 << 10, "{memory} kB");
}
