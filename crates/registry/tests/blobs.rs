//! Blobs from a registry that breaks, lies and stalls.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use baleen_oci::{Descriptor, Repository};
use baleen_registry::{BlobEvent, BlobStream, Client, ClientConfig, Credentials, Missing, RegistryError, VerifiedBlob};
use support::stub::{Asked, Ending, LAYER_TYPE, Reply, Stub, bytes, descriptor, quick_config};
use support::{Hurried, run};

const LENGTH: usize = 1_000_000;

struct Fixture {
    stub: Stub,
    blob: Vec<u8>,
    descriptor: Descriptor,
    config: ClientConfig,
    events: Arc<Mutex<Vec<BlobEvent>>>,
}

impl Fixture {
    /// A registry whose answers for its one blob are made by `answer`.
    async fn new(answer: impl Fn(&Asked, &[u8]) -> Reply + Send + Sync + 'static) -> Fixture {
        let blob = bytes(LENGTH, 1);
        let served = blob.clone();
        let stub = Stub::start(move |asked| answer(asked, &served)).await;
        let descriptor = descriptor(LAYER_TYPE, &blob);
        Fixture { stub, blob, descriptor, config: quick_config(), events: Arc::default() }
    }

    fn stream(&self, start: u64) -> BlobStream {
        let repository = Repository::parse(&format!("127.0.0.1:{}/a", self.stub.port())).unwrap();
        let client = Client::new(self.config.clone()).repository(&repository, Credentials::Anonymous);
        let events = self.events.clone();
        client.blob(&self.descriptor, start, move |event| events.lock().unwrap().push(event))
    }

    fn range_starts(&self) -> Vec<Option<usize>> {
        self.stub.asked().iter().map(Asked::range_start).collect()
    }
}

/// Reads to the end or the first error.
async fn read(stream: &mut BlobStream) -> (Vec<u8>, Option<RegistryError>) {
    let mut bytes = Vec::new();
    loop {
        match stream.next_chunk().await {
            Ok(Some(chunk)) => {
                assert!(!chunk.is_empty() && chunk.len() <= 64 << 10, "a chunk of {} bytes", chunk.len());
                bytes.extend_from_slice(&chunk);
            }
            Ok(None) => return (bytes, None),
            Err(error) => return (bytes, Some(error)),
        }
    }
}

#[test]
fn a_blob_that_breaks_goes_on_where_it_was() {
    run(async {
        // Each connection brings 300,000 bytes more, then breaks.
        let fixture = Fixture::new(|asked, blob| {
            let reply = Reply::blob(asked, blob);
            match reply.body.len() {
                0..=300_000 => reply,
                _ => reply.ending(Ending::CutAfter(300_000)),
            }
        })
        .await;
        let mut stream = fixture.stream(0);
        let (read, error) = read(&mut stream).await;
        assert!(error.is_none(), "{error:?}");
        assert!(read == fixture.blob, "each byte once and in order");
        assert_eq!(fixture.range_starts(), [None, Some(300_000), Some(600_000), Some(900_000)]);
        assert_eq!(stream.fetched_bytes(), LENGTH as u64, "no byte is fetched twice");
        let events = fixture.events.lock().unwrap();
        let resumed: Vec<_> = events.iter().filter(|event| matches!(event, BlobEvent::Resumed { .. })).collect();
        assert_eq!(resumed.len(), 3);
        assert!(matches!(events[0], BlobEvent::Retrying { seconds_left: 1, attempt: 2, .. }), "{:?}", events[0]);
    });
}

#[test]
fn more_breaks_than_attempts_are_no_failure_as_long_as_bytes_come() {
    run(async {
        let fixture = Fixture::new(|asked, blob| {
            let reply = Reply::blob(asked, blob);
            let length = reply.body.len().min(40_000);
            reply.ending(Ending::CutAfter(length))
        })
        .await;
        let mut stream = fixture.stream(0);
        let (read, error) = read(&mut stream).await;
        assert!(error.is_none() && read == fixture.blob, "{error:?}");
        assert_eq!(fixture.stub.asked().len(), LENGTH / 40_000);
        assert_eq!(stream.fetched_bytes(), LENGTH as u64);
    });
}

#[test]
fn attempts_before_the_first_byte_are_counted_and_end() {
    run(async {
        let mut fixture = Fixture::new(|asked, blob| Reply::blob(asked, blob).ending(Ending::CutAfter(0))).await;
        fixture.config.download_attempts_max = 4;
        let mut stream = fixture.stream(500);
        let (read, error) = read(&mut stream).await;
        assert!(read.is_empty());
        assert!(matches!(error, Some(RegistryError::Broken { .. })), "{error:?}");
        assert_eq!(fixture.range_starts(), [Some(500); 4]);
        assert_eq!(stream.position(), 500);
    });
}

#[test]
fn after_the_first_byte_of_any_layer_a_network_that_fails_is_waited_for_without_limit() {
    run(async {
        let mut fixture = Fixture::new(|asked, blob| match (asked.range_start(), asked.earlier) {
            (None, _) => Reply::blob(asked, blob).ending(Ending::CutAfter(1000)),
            (Some(1000), ..=300) if asked.earlier % 2 == 0 => Reply::new(503, "not now"),
            (Some(1000), ..=300) => Reply::blob(asked, blob).ending(Ending::CutAfter(0)),
            _ => Reply::blob(asked, blob),
        })
        .await;
        let clock = Arc::new(Hurried::default());
        fixture.config.clock = clock.clone();
        fixture.config.timeouts.retry_first = Duration::from_secs(2);
        fixture.config.download_attempts_max = 3;
        let (read, error) = read(&mut fixture.stream(0)).await;
        assert!(error.is_none() && read == fixture.blob, "{error:?}");
        // 2, 4, 8, 16, 32, then a minute each: no less, or a fleet would storm its registry.
        assert_eq!(clock.total(), Duration::from_secs(62 + 60 * 296));
        let events = fixture.events.lock().unwrap();
        let text = format!("{:?}", events[events.len() / 2]);
        assert!(text.contains("broke") || text.contains("status 503"), "it says what it waits for: {text}");
    });
}

#[test]
fn another_layer_of_a_pull_that_has_begun_is_waited_for_as_well() {
    run(async {
        let mut fixture = Fixture::new(|asked, blob| match asked.earlier {
            1..=20 => Reply::blob(asked, blob).ending(Ending::CutAfter(0)),
            _ => Reply::blob(asked, blob),
        })
        .await;
        fixture.config.clock = Arc::new(Hurried::default());
        let repository = Repository::parse(&format!("127.0.0.1:{}/a", fixture.stub.port())).unwrap();
        let client = Client::new(fixture.config.clone()).repository(&repository, Credentials::Anonymous);
        for _ in 0..2 {
            let (read, error) = read(&mut client.blob(&fixture.descriptor, 0, |_| {})).await;
            assert!(error.is_none() && read == fixture.blob, "{error:?}");
        }
        assert_eq!(fixture.stub.asked().len(), 22);
        // Another pull by the same client has received nothing yet.
        let other = Fixture::new(|asked, blob| Reply::blob(asked, blob).ending(Ending::CutAfter(0))).await;
        let (_, error) = read(&mut other.stream(0)).await;
        assert!(matches!(error, Some(RegistryError::Broken { .. })), "{error:?}");
        assert_eq!(other.stub.asked().len(), 5);
    });
}

#[test]
fn a_refusal_ends_at_once_also_in_the_middle() {
    run(async {
        for status in [401, 403, 404] {
            let fixture = Fixture::new(move |asked, blob| match asked.range_start() {
                None => Reply::blob(asked, blob).ending(Ending::CutAfter(1000)),
                Some(_) => Reply::error(status, "X", "no"),
            })
            .await;
            let (read, error) = read(&mut fixture.stream(0)).await;
            assert_eq!(read.len(), 1000);
            let is_told = matches!(error, Some(RegistryError::NotFound { .. } | RegistryError::Unauthorized { .. }));
            assert!(is_told, "{status}: {error:?}");
            assert_eq!(fixture.stub.asked().len(), 2, "{status}");
        }
    });
}

#[test]
fn a_server_that_asks_for_time_gets_it() {
    run(async {
        for (status, told, waited) in [(429, "70", 70), (503, "7", 7), (500, "1000000", 900), (502, "soon", 2)] {
            let mut fixture = Fixture::new(move |asked, blob| match asked.earlier {
                0 => Reply::new(status, "later").header("Retry-After", told),
                _ => Reply::blob(asked, blob),
            })
            .await;
            let clock = Arc::new(Hurried::default());
            fixture.config.clock = clock.clone();
            fixture.config.timeouts.retry_first = Duration::from_secs(2);
            let (read, error) = read(&mut fixture.stream(0)).await;
            assert!(error.is_none() && read == fixture.blob, "{error:?}");
            assert_eq!(clock.total(), Duration::from_secs(waited), "{told}");
            assert!(clock.waited().iter().all(|step| *step <= Duration::from_secs(1)), "it counts down");
        }
    });
}

#[test]
fn a_server_that_ignores_ranges_is_read_again_and_the_bytes_are_counted() {
    run(async {
        let fixture = Fixture::new(|asked, blob| match asked.earlier {
            0 => Reply::new(200, blob).ending(Ending::CutAfter(400_000)),
            _ => Reply::new(200, blob),
        })
        .await;
        let mut stream = fixture.stream(0);
        let (read, error) = read(&mut stream).await;
        assert!(error.is_none() && read == fixture.blob, "{error:?}");
        assert_eq!(stream.fetched_bytes(), 400_000 + LENGTH as u64);
    });
}

#[test]
fn reading_again_what_was_handed_out_is_no_progress_and_does_not_go_on_for_ever() {
    run(async {
        let mut fixture = Fixture::new(|_, blob| Reply::new(200, blob).ending(Ending::CutAfter(400_000))).await;
        fixture.config.download_attempts_max = 3;
        let mut stream = fixture.stream(0);
        let (read, error) = read(&mut stream).await;
        assert!(matches!(error, Some(RegistryError::Broken { .. })), "{error:?}");
        assert_eq!((read.len(), fixture.stub.asked().len()), (400_000, 4));
    });
}

#[test]
fn a_blob_starts_at_an_offset_after_a_restart() {
    run(async {
        let fixture = Fixture::new(Reply::blob).await;
        let mut stream = fixture.stream(123_456);
        let (rest, error) = read(&mut stream).await;
        assert!(error.is_none() && rest == fixture.blob[123_456..], "{error:?}");
        assert_eq!(stream.fetched_bytes(), (LENGTH - 123_456) as u64);
        let mut at_end = fixture.stream(LENGTH as u64);
        assert!(at_end.next_chunk().await.unwrap().is_none(), "nothing is left, and nothing is asked for");
        assert_eq!(fixture.stub.asked().len(), 1);
    });
}

#[test]
fn another_range_than_asked_for_is_refused() {
    run(async {
        for range in ["bytes 0-999999/1000000", "bytes 101-999999/1000000", "bytes 100-99999/1000000", "nonsense", ""] {
            let fixture =
                Fixture::new(move |_, blob| Reply::new(206, &blob[100..]).header("Content-Range", range)).await;
            let (read, error) = read(&mut fixture.stream(100)).await;
            assert!(read.is_empty());
            assert!(matches!(error, Some(RegistryError::Protocol { .. })), "{range}: {error:?}");
            let starts = fixture.range_starts();
            assert_eq!(starts, [Some(100), None], "without ranges it makes as little sense, and is not asked again");
        }
        let fixture =
            Fixture::new(|_, blob| Reply::new(206, &blob[100..]).header("Content-Range", "bytes 100-999999/1000001"))
                .await;
        let (_, error) = read(&mut fixture.stream(100)).await;
        assert!(matches!(error, Some(RegistryError::SizeMismatch { found: 1_000_001, .. })), "{error:?}");
        let fixture = Fixture::new(|_, _| Reply::error(416, "X", "no")).await;
        let (_, error) = read(&mut fixture.stream(100)).await;
        assert!(matches!(error, Some(RegistryError::Server { status: 416, .. })), "{error:?}");
    });
}

#[test]
fn a_server_that_refuses_ranges_is_read_from_the_start() {
    run(async {
        let wrong = |blob: &[u8]| Reply::new(206, blob).header("Content-Range", "bytes 0-999999/1000000");
        for status in [206, 400, 405, 416, 501] {
            let fixture = Fixture::new(move |asked, blob| match asked.range_start() {
                None => Reply::new(200, blob),
                Some(_) if status == 206 => wrong(blob),
                Some(_) => Reply::new(status, ""),
            })
            .await;
            let mut stream = fixture.stream(400_000);
            let (read, error) = read(&mut stream).await;
            assert!(error.is_none() && read == fixture.blob[400_000..], "{status}: {error:?}");
            assert_eq!(fixture.range_starts(), [Some(400_000), None]);
            assert_eq!(stream.fetched_bytes(), LENGTH as u64, "what is passed over is counted");
        }
    });
}

#[test]
fn a_blob_that_is_longer_than_its_descriptor_says_is_refused() {
    run(async {
        let longer = |blob: &[u8]| [blob, b"x"].concat();
        let announced = Fixture::new(move |_, blob| Reply::new(200, longer(blob))).await;
        let (bytes, error) = read(&mut announced.stream(0)).await;
        assert!(matches!(error, Some(RegistryError::SizeMismatch { found: 1_000_001, .. })), "{error:?}");
        assert!(bytes.is_empty(), "what is announced wrong is not read");
        let silent = Fixture::new(move |_, blob| Reply::new(200, longer(blob)).without_length()).await;
        let mut stream = silent.stream(0);
        let (bytes, error) = read(&mut stream).await;
        assert!(matches!(error, Some(RegistryError::SizeMismatch { .. })), "{error:?}");
        assert!(bytes.len() <= LENGTH);
        assert!(stream.next_chunk().await.is_err(), "and it never ends well");
        let endless = Fixture::new(|_, blob| Reply::new(200, blob).ending(Ending::Endless)).await;
        let (_, error) = read(&mut endless.stream(0)).await;
        assert!(matches!(error, Some(RegistryError::SizeMismatch { .. })), "{error:?}");
    });
}

#[test]
fn a_blob_that_is_shorter_is_refused_after_the_last_attempt() {
    run(async {
        let fixture = Fixture::new(|_, blob| Reply::new(200, &blob[..LENGTH - 1]).without_length()).await;
        let (read, error) = read(&mut fixture.stream(0)).await;
        assert!(matches!(error, Some(RegistryError::SizeMismatch { found: 999_999, .. })), "{error:?}");
        assert_eq!(read.len(), LENGTH - 1);
    });
}

#[test]
fn a_registry_that_stalls_is_left_and_asked_again() {
    run(async {
        let mut fixture = Fixture::new(|asked, blob| match asked.earlier {
            0 => Reply::blob(asked, blob).ending(Ending::StallAfter(70_000)),
            _ => Reply::blob(asked, blob),
        })
        .await;
        fixture.config.timeouts.idle = Duration::from_secs(1);
        let mut stream = fixture.stream(0);
        let (read, error) = read(&mut stream).await;
        assert!(error.is_none() && read == fixture.blob, "{error:?}");
        assert_eq!(fixture.range_starts(), [None, Some(70_000)]);
    });
}

#[test]
fn a_dropped_stream_closes_its_connection() {
    run(async {
        let fixture = Fixture::new(|asked, blob| Reply::blob(asked, blob).ending(Ending::Endless)).await;
        let mut stream = fixture.stream(0);
        stream.next_chunk().await.unwrap().unwrap();
        assert_eq!(fixture.stub.open_connections(), 1);
        drop(stream);
        // The server notices by a failed write; nothing but its own turn to run is waited for.
        while fixture.stub.open_connections() > 0 {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn a_missing_blob_and_a_refused_one_are_told_at_once() {
    run(async {
        let fixture = Fixture::new(|_, _| Reply::error(404, "BLOB_UNKNOWN", "blob unknown to registry")).await;
        let (_, error) = read(&mut fixture.stream(0)).await;
        assert!(matches!(error, Some(RegistryError::NotFound { missing: Missing::Blob, .. })), "{error:?}");
        assert_eq!(fixture.stub.asked().len(), 1);
        let fixture = Fixture::new(|_, _| Reply::error(403, "DENIED", "no")).await;
        let (_, error) = read(&mut fixture.stream(0)).await;
        assert!(matches!(error, Some(RegistryError::NotFound { missing: Missing::AccessDenied, .. })), "{error:?}");
    });
}

#[test]
fn an_overloaded_registry_is_asked_again() {
    run(async {
        for status in [429, 500, 502, 503, 504] {
            let fixture = Fixture::new(move |asked, blob| match asked.earlier {
                0 | 1 => Reply::new(status, "later"),
                _ => Reply::blob(asked, blob),
            })
            .await;
            let (read, error) = read(&mut fixture.stream(0)).await;
            assert!(error.is_none() && read == fixture.blob, "{status}: {error:?}");
        }
    });
}

#[test]
fn bytes_that_the_digest_does_not_name_are_refused_at_the_end() {
    run(async {
        let fixture = Fixture::new(|_, blob| {
            let mut other = blob.to_vec();
            other[LENGTH / 2] ^= 1;
            Reply::new(200, other)
        })
        .await;
        let mut blob = VerifiedBlob::new(fixture.stream(0));
        let error = loop {
            match blob.next_chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("wrong bytes were taken for right"),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(&error, RegistryError::DigestMismatch { expected, .. } if **expected == fixture.descriptor.digest)
        );
    });
}

#[test]
fn a_reader_that_is_cut_short_loses_no_byte() {
    run(async {
        let fixture = Fixture::new(|asked, blob| {
            Reply::blob(asked, blob).ending(match asked.range_start() {
                Some(start) if start >= 500_000 => Ending::Whole,
                _ => Ending::CutAfter(100_000),
            })
        })
        .await;
        let mut stream = fixture.stream(0);
        let mut bytes = Vec::new();
        loop {
            // The future is dropped as soon as it has to wait, which is nearly every time.
            tokio::select! {
                biased;
                chunk = stream.next_chunk() => match chunk.unwrap() {
                    Some(chunk) => bytes.extend_from_slice(&chunk),
                    None => break,
                },
                () = tokio::time::sleep(Duration::from_millis(3)) => {}
            }
        }
        assert!(bytes == fixture.blob);
    });
}

#[test]
fn blobs_are_followed_across_redirects_each_time_anew() {
    run(async {
        let blob = bytes(LENGTH, 1);
        let served = blob.clone();
        let cdn = Stub::start(move |asked| match asked.range_start() {
            None => Reply::blob(asked, &served).ending(Ending::CutAfter(10_000)),
            Some(_) => Reply::blob(asked, &served),
        })
        .await;
        let cdn_port = cdn.port();
        // The address holds for one request, as signed addresses do for a short time.
        let fixture = Fixture::new(move |asked, _| {
            Reply::redirect(format!("http://127.0.0.1:{cdn_port}/signed?turn={}", asked.earlier))
        })
        .await;
        let (read, error) = read(&mut fixture.stream(0)).await;
        assert!(error.is_none() && read == blob, "{error:?}");
        let paths: Vec<_> = cdn.asked().into_iter().map(|asked| asked.path).collect();
        assert_eq!(paths, ["/signed?turn=0", "/signed?turn=1"]);
        assert_eq!(cdn.asked()[1].range_start(), Some(10_000));
    });
}

#[test]
fn redirects_end_after_ten() {
    run(async {
        let fixture = Fixture::new(|asked, _| Reply::redirect(format!("{}x", asked.path))).await;
        let (_, error) = read(&mut fixture.stream(0)).await;
        assert!(matches!(error, Some(RegistryError::Redirect { .. })), "{error:?}");
        assert_eq!(fixture.stub.asked().len(), 11);
    });
}

#[test]
fn whatever_a_registry_does_in_between_the_bytes_come_out_right() {
    run(async {
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("BALEEN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(clock);
        println!("BALEEN_SEED={seed}");
        for round in 0..20 {
            let random = Mutex::new(seed.wrapping_add(round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            let below = move |limit: usize| {
                let mut state = random.lock().unwrap();
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                (*state % limit as u64) as usize
            };
            let sent = Arc::new(AtomicUsize::new(0));
            let counted = sent.clone();
            let mut fixture = Fixture::new(move |asked, blob| {
                let mut reply = match below(8) {
                    0 => return Reply::new(503, "busy"),
                    1 => Reply::new(200, blob),
                    2 => Reply::new(200, blob).without_length(),
                    _ => Reply::blob(asked, blob),
                };
                let length = below(reply.body.len() + 1);
                reply.ending = match below(6) {
                    0 => Ending::Whole,
                    1 => Ending::StallAfter(length),
                    _ => Ending::CutAfter(length),
                };
                let length = if reply.ending == Ending::Whole { reply.body.len() } else { length };
                counted.fetch_add(length, Ordering::Relaxed);
                reply
            })
            .await;
            fixture.config.download_attempts_max = 100;
            fixture.config.timeouts.idle = Duration::from_millis(40);
            fixture.config.timeouts.retry_first = Duration::from_millis(1);
            fixture.config.timeouts.retry_max = Duration::from_millis(1);
            let mut stream = fixture.stream(0);
            let (read, error) = read(&mut stream).await;
            assert!(error.is_none() && read == fixture.blob, "round {round}: {error:?}");
            let (fetched, sent) = (stream.fetched_bytes(), sent.load(Ordering::Relaxed) as u64);
            assert!((LENGTH as u64..=sent).contains(&fetched), "round {round}: {fetched} of {sent} bytes were counted");
        }
    });
}
