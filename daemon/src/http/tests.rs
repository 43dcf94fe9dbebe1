//! The protocol, spoken by hand to a toy service over a socket pair.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Answers by path.
#[derive(Default)]
struct Toy {
    calls: AtomicUsize,
    /// Told when the handler of `/held` notices that its client has gone.
    noticed: Mutex<Option<oneshot::Sender<()>>>,
}

impl Service for Toy {
    fn call(self: Arc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Reply> + Send>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Box::pin(self.answer(request))
    }

    fn ending(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }

    fn headers(&self) -> &str {
        "Server: toy\r\n"
    }

    fn refusal(&self, status: u16, message: &str) -> Reply {
        Reply::whole(status, "application/json", format!("{{\"message\":\"{message}\"}}\n"))
    }
}

impl Toy {
    async fn answer(self: Arc<Self>, mut request: Request) -> Reply {
        match request.head.target.as_str() {
            "/echo" => match request.body.all(1024).await {
                Ok(body) => Reply::whole(200, "text/plain", body),
                Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => self.refusal(413, "too large"),
                Err(_) => self.refusal(400, "bad body"),
            },
            "/unread" => self.refusal(404, "unread"),
            "/empty" => Reply::empty(204),
            "/panic" => panic!("on purpose"),
            "/stream" => {
                let (sender, receiver) = chunks();
                tokio::spawn(async move {
                    for piece in ["one", "", "two"] {
                        if sender.send(Bytes::from_static(piece.as_bytes())).await.is_err() {
                            return;
                        }
                    }
                    sender.end();
                });
                Reply::stream("application/json", receiver)
            }
            "/broken" => {
                let (sender, receiver) = chunks();
                tokio::spawn(async move {
                    let _ = sender.send(Bytes::from_static(b"half")).await;
                    panic!("on purpose");
                });
                Reply::stream("application/octet-stream", receiver)
            }
            "/held" => {
                request.gone.wait().await;
                if let Some(noticed) = self.noticed.lock().expect("nobody panics with it").take() {
                    let _ = noticed.send(());
                }
                Reply::empty(204)
            }
            "/cat" => Reply::hijack("application/vnd.docker.raw-stream", |mut hijacked| async move {
                while let Ok(Some(bytes)) = hijacked.input.chunk().await {
                    if hijacked.output.write(&bytes).await.is_err() {
                        return;
                    }
                }
                let _ = hijacked.output.write(b"<end>").await;
            }),
            _ => self.refusal(404, "page not found"),
        }
    }
}

/// Opens a connection to a toy.
fn connect(toy: Arc<Toy>) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    tokio::spawn(serve(Stream::Unix(theirs), toy));
    ours
}

/// Sends everything, closes the write side, and gives all that comes back.
async fn exchange(text: &[u8]) -> String {
    let mut stream = connect(Arc::default());
    stream.write_all(text).await.expect("the server reads");
    stream.shutdown().await.expect("still open");
    read_all(&mut stream).await
}

async fn read_all(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the server ends the connection")
        .expect("a clean end");
    String::from_utf8(answer).expect("text")
}

/// Reads until the text has been seen.
async fn read_until(stream: &mut UnixStream, text: &str) -> String {
    let mut seen = String::new();
    let mut piece = [0; 4096];
    while !seen.contains(text) {
        let length = timeout(PATIENCE, stream.read(&mut piece)).await.expect("an answer in time").expect("open");
        assert!(length > 0, "the server closed after {seen:?}");
        seen.push_str(std::str::from_utf8(&piece[..length]).expect("text"));
    }
    seen
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_on_one_connection() {
    let answer = exchange(
        b"POST /echo HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /empty HTTP/1.1\r\n\r\nPOST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nde\r\n1\r\nf\r\n0\r\nTrailer: t\r\n\r\nGET /nowhere HTTP/1.1\r\nConnection: close\r\n\r\n",
    )
    .await;
    let places =
        ["\r\n\r\nabc", "204 No Content", "\r\n\r\ndef", "404 Not Found"].map(|text| answer.find(text).expect(text));
    assert!(places.is_sorted(), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 4, "{answer}");
    assert_eq!(answer.matches("Server: toy\r\n").count(), 4, "{answer}");
}

#[tokio::test]
async fn a_request_that_two_servers_would_cut_differently_reaches_nobody() {
    let toy = Arc::new(Toy::default());
    let mut stream = connect(toy.clone());
    let smuggled = b"POST /echo HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /empty HTTP/1.1\r\n\r\n";
    stream.write_all(smuggled).await.expect("the server reads");
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n") && answer.contains("Connection: close\r\n"), "{answer}");
    assert!(answer.contains("{\"message\":\"both Content-Length and Transfer-Encoding are given\"}"), "{answer}");
    assert_eq!((toy.calls.load(Ordering::SeqCst), answer.matches("HTTP/1.1").count()), (0, 1));
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused_and_the_connection_closed() {
    let many = (0..101).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    assert!(exchange(format!("GET /empty HTTP/1.1\r\n{many}\r\n").as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let long = format!("GET /empty HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(70_000));
    assert!(exchange(long.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let fits = format!("GET /empty HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(60_000));
    assert!(exchange(fits.as_bytes()).await.starts_with("HTTP/1.1 204 "));
    assert!(exchange(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03").await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn a_body_that_nobody_reads_is_thrown_away_before_the_next_request() {
    let mut text = b"POST /unread HTTP/1.1\r\nContent-Length: 300000\r\n\r\n".to_vec();
    text.extend(std::iter::repeat_n(b'x', 300_000));
    text.extend_from_slice(b"GET /empty HTTP/1.1\r\n\r\n");
    let answer = exchange(&text).await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("HTTP/1.1 204 "), "{answer}");
}

#[tokio::test]
async fn a_body_over_its_limit_is_refused_and_the_client_can_read_why() {
    let mut text = b"POST /echo HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n".to_vec();
    text.extend(std::iter::repeat_n(b'x', 2_000_000));
    assert!(exchange(&text).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn malformed_chunks_are_refused_and_end_the_connection() {
    for chunks in [
        "x\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\n",
    ] {
        let text =
            format!("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}GET /empty HTTP/1.1\r\n\r\n");
        let answer = exchange(text.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{chunks:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{chunks:?}: {answer}");
    }
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it_only_if_its_body_is_read() {
    let mut stream = connect(Arc::default());
    let head = "POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("the server reads");
    assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.expect("the server reads");
    assert!(read_until(&mut stream, "abc").await.starts_with("HTTP/1.1 200 OK\r\n"));
    let refused = "POST /unread HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    stream.write_all(refused.as_bytes()).await.expect("the server reads");
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

#[tokio::test]
async fn streams_are_chunked_for_http_1_1_and_end_with_the_connection_for_1_0() {
    let answer = exchange(b"GET /stream HTTP/1.1\r\n\r\nGET /empty HTTP/1.1\r\n\r\n").await;
    assert!(answer.contains("Transfer-Encoding: chunked\r\n"), "{answer}");
    assert!(answer.contains("\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\nHTTP/1.1 204"), "{answer}");
    let old = exchange(b"GET /stream HTTP/1.0\r\n\r\n").await;
    assert!(!old.contains("chunked") && old.ends_with("\r\n\r\nonetwo"), "{old}");
}

#[tokio::test]
async fn a_stream_whose_maker_panicked_is_broken_off_and_never_looks_whole() {
    let answer = exchange(b"GET /broken HTTP/1.1\r\n\r\nGET /empty HTTP/1.1\r\n\r\n").await;
    assert!(answer.ends_with("\r\n\r\n4\r\nhalf\r\n"), "{answer}");
}

#[tokio::test]
async fn a_head_request_gets_headers_alone() {
    let answer = exchange(b"HEAD /unread HTTP/1.1\r\n\r\nGET /empty HTTP/1.1\r\n\r\n").await;
    assert!(answer.contains("Content-Length: 21\r\n\r\nHTTP/1.1 204"), "{answer}");
}

#[tokio::test]
async fn a_panic_is_answered_and_the_connection_goes_on() {
    let answer = exchange(b"GET /panic HTTP/1.1\r\n\r\nGET /empty HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("HTTP/1.1 204 "), "{answer}");
}

#[tokio::test]
async fn a_client_that_closes_both_ways_is_noticed_while_nothing_is_written() {
    let (sender, noticed) = oneshot::channel();
    let toy = Arc::new(Toy::default());
    *toy.noticed.lock().expect("fresh") = Some(sender);
    let mut stream = connect(toy);
    stream.write_all(b"GET /held HTTP/1.1\r\n\r\n").await.expect("the server reads");
    drop(stream);
    timeout(PATIENCE, noticed).await.expect("noticed in time").expect("the handler ran");
}

#[tokio::test]
async fn a_client_that_closes_only_its_write_side_is_still_waited_for() {
    let (sender, mut noticed) = oneshot::channel();
    let toy = Arc::new(Toy::default());
    *toy.noticed.lock().expect("fresh") = Some(sender);
    let mut stream = connect(toy);
    stream.write_all(b"GET /held HTTP/1.1\r\n\r\n").await.expect("the server reads");
    stream.shutdown().await.expect("still open");
    // Another connection is served meanwhile, so the first one's loop has had its turns.
    for _ in 0..50 {
        assert!(exchange(b"GET /empty HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 204 "));
    }
    assert!(noticed.try_recv().is_err(), "a half-closed client was taken for one that has gone");
    drop(stream);
    timeout(PATIENCE, noticed).await.expect("noticed in time").expect("the handler ran");
}

#[tokio::test]
async fn a_hijack_with_upgrade_is_a_101_and_raw_bytes_both_ways() {
    let mut stream = connect(Arc::default());
    let head = "POST /cat HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\nearly";
    stream.write_all(head.as_bytes()).await.expect("the server reads");
    let answer = read_until(&mut stream, "early").await;
    assert!(answer.starts_with("HTTP/1.1 101 UPGRADED\r\n"), "{answer}");
    for header in ["Connection: Upgrade\r\n", "Upgrade: tcp\r\n", "Content-Type: application/vnd.docker.raw-stream\r\n"]
    {
        assert!(answer.contains(header), "{answer}");
    }
    // What looks like a request belongs to the stream.
    stream.write_all(b"GET /empty HTTP/1.1\r\n\r\n").await.expect("the server reads");
    assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "GET /empty HTTP/1.1\r\n\r\n");
    stream.shutdown().await.expect("still open");
    assert_eq!(read_all(&mut stream).await, "<end>");
}

#[tokio::test]
async fn a_hijack_without_upgrade_is_a_raw_200_until_the_connection_ends() {
    let answer = exchange(b"POST /cat HTTP/1.1\r\nContent-Length: 0\r\n\r\nraw").await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(
        head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains("chunked") && !head.contains("Content-Length"),
        "{head}"
    );
    assert_eq!(body, "raw<end>");
    let chunked = exchange(b"POST /cat HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nin\r\n0\r\n\r\n").await;
    assert!(chunked.ends_with("\r\n\r\nin<end>"), "{chunked}");
}
