//! Networks that break, from the first byte to the last.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_engine::{EngineConfig, LayerPhase, Progress, RetryClock};
use baleen_tests::archive::Entry;
use baleen_tests::image::{Image, Layer};
use baleen_tests::random::Random;
use baleen_tests::stub::Stub;

use crate::fixture::Fixture;

crate::tests!(
    a_pull_survives_two_thousand_cuts_fetches_no_byte_twice_and_needs_no_memory,
    a_network_that_fails_before_the_first_byte_ends_the_pull_after_its_attempts,
);

/// Every wait is over at once.
#[derive(Debug)]
struct Hurried;

impl RetryClock for Hurried {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        Box::pin(tokio::task::yield_now())
    }
}

fn hurry(config: &mut EngineConfig) {
    config.retry_clock = Arc::new(Hurried);
}

/// Stands between the engine and a registry, and cuts each connection after some bytes of the answers.
struct Cutter {
    port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    upstream: String,
    random: Mutex<Random>,
    /// So many of the first connections get 64 KiB.
    spared: AtomicU64,
    /// So many cuts are still made.
    cuts_left: AtomicU64,
    cuts: AtomicU64,
    answer_bytes_max: u64,
    ends: AtomicBool,
}

impl Cutter {
    fn start(upstream: String, spared: u64, cuts: u64, answer_bytes_max: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            upstream,
            random: Mutex::new(Random::for_test("cuts")),
            spared: AtomicU64::new(spared),
            cuts_left: AtomicU64::new(cuts),
            cuts: AtomicU64::new(0),
            answer_bytes_max,
            ends: AtomicBool::new(false),
        });
        let accepted = Arc::clone(&shared);
        let acceptor = thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepted.ends.load(Ordering::Acquire) {
                    return;
                }
                let shared = Arc::clone(&accepted);
                thread::spawn(move || shared.pass(&client));
            }
        });
        Ok(Self { port, shared, acceptor: Some(acceptor) })
    }

    fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        TcpStream::connect(("127.0.0.1", self.port)).ok(); // Wakes the acceptor.
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().ok();
        }
    }
}

impl Shared {
    fn pass(&self, mut client: &TcpStream) {
        let Ok(server) = TcpStream::connect(&self.upstream) else { return };
        for stream in [client, &server] {
            stream.set_nodelay(true).ok();
        }
        let mut left = match take_one(&self.spared) {
            true => 65_536,
            false => self.random.lock().unwrap().below(self.answer_bytes_max) + 1,
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                // Ends with either side, since both are shut down below.
                std::io::copy(&mut &*client, &mut &server).ok();
                server.shutdown(Shutdown::Both).ok();
            });
            let mut buffer = [0; 4096];
            loop {
                let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                let Ok(count @ 1..) = (&server).read(&mut buffer[..wanted]) else { break };
                if client.write_all(&buffer[..count]).is_err() {
                    break;
                }
                left -= count as u64;
                if left == 0 {
                    if take_one(&self.cuts_left) {
                        self.cuts.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    left = u64::MAX;
                }
            }
            for stream in [client, &server] {
                stream.shutdown(Shutdown::Both).ok();
            }
        });
    }
}

fn take_one(count: &AtomicU64) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1)).is_ok()
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

fn a_pull_survives_two_thousand_cuts_fetches_no_byte_twice_and_needs_no_memory() -> Result<()> {
    const CUTS: u64 = 2000;
    let fixture = Fixture::tuned("cuts", hurry)?;
    let stub = Stub::start()?;
    let mut random = Random::new(7);
    // Half of 8 KiB a cut on average, so that all cuts are made well before the end.
    let layers: Result<Vec<Layer>> =
        (0..3).map(|number| Layer::of(&[Entry::file(&format!("f{number}"), random.bytes(4_000_000))])).collect();
    let image = Image::new(layers?, &["/x"]);
    stub.add("app", "v1", &image);
    // The documents come on a connection that is spared: their attempts are limited, and are tested elsewhere.
    let cutter = Cutter::start(stub.address(), 3, CUTS, 8192)?;
    let cuts = Arc::clone(&cutter.shared);
    let memory = thread::spawn(move || -> Result<(u64, u64)> {
        let (mut early, mut late) = (0, 0);
        while cuts.cuts_left.load(Ordering::Relaxed) > 0 && !cuts.ends.load(Ordering::Acquire) {
            let now = resident_bytes()?;
            if cuts.cuts.load(Ordering::Relaxed) < CUTS / 4 {
                early = now.max(early)
            } else {
                late = now.max(late)
            }
            thread::sleep(Duration::from_millis(1)); // The pace of the samples.
        }
        Ok((early, late))
    });
    let (pulled, told) = fixture.pull(&format!("127.0.0.1:{}/app:v1", cutter.port));
    let made = cutter.cuts();
    drop(cutter);
    let (early_bytes, late_bytes) = memory.join().expect("the sampler panicked")?;
    let pulled = pulled?;
    println!(
        "{made} cuts, {} bytes fetched of {}, resident {early_bytes} early and {late_bytes} later",
        pulled.fetched_bytes,
        image.blob_bytes()
    );
    assert!(made >= CUTS, "only {made} cuts were made");
    assert_eq!(pulled.fetched_bytes, image.blob_bytes(), "no byte came twice");
    let reasons = told.iter().filter_map(|progress| match progress {
        Progress::Layer { phase: LayerPhase::Retrying { reason, .. }, .. } => Some(reason),
        _ => None,
    });
    assert!(reasons.into_iter().any(|reason| reason.contains("broke")), "nobody was told what is waited for");
    // The registry of this process remembers two thousand requests meanwhile, about 2 MB.
    assert!(late_bytes < early_bytes + (6 << 20), "memory grew from {early_bytes} to {late_bytes} bytes");
    Ok(())
}

fn a_network_that_fails_before_the_first_byte_ends_the_pull_after_its_attempts() -> Result<()> {
    let fixture = Fixture::tuned("attempts", hurry)?;
    let stub = Stub::start()?;
    let image = Image::new(vec![Layer::of(&[Entry::file("f", "f")])?], &["/x"]);
    stub.add("app", "v1", &image);
    let layer = image.layers[0].digest();
    stub.hook(move |request| request.path.ends_with(&layer).then_some(baleen_tests::stub::Reply::Break));
    let (pulled, _) = fixture.pull(&stub.reference("app:v1"));
    let error = pulled.expect_err("no byte of the layer ever came");
    assert!(error.chain().contains("broke"), "{}", error.chain());
    // On the connection of the documents it fails for a reason of its own: that is no attempt.
    assert_eq!(stub.fetches_of(&image.layers[0].digest()), 1 + 5, "max-download-attempts");
    Ok(())
}
