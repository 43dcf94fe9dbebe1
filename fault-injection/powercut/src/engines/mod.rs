//! Container engines as workloads: baleen and Debian's `dockerd`, driven and judged through the API that both speak.
//!
//! E1  What was acknowledged is there and whole: every file is compared with a reference by content, mode, owner, times and
//!     extended attributes. What was not is there whole or not at all.
//! E2  No container is made between a pull and its cut but where a workload is about containers: unmounting an overlay with an
//!     upper directory syncs the file system, and would heal a pull that was not synced.
//! E3  `baleen fsck` calls no state that a cut has left damaged, knows an owner for each path of the root, and accounts for each
//!     byte that `du` counts.
//! E4  Whoever judges makes the same images from the same names as who recorded; a recording of others is refused.
//!
//! Touches: the place that it is given, a registry on the loopback network, and reference trees in the temporary folder.

mod images;
mod judge;
mod plan;
mod program;
mod step;
mod store;

use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use baleen_tests::http;
use baleen_tests::stub::Stub;
use serde_json::{Value, json};

use crate::workload::{Broken, History, MarkKind, Marks, Place, Workload, WorkloadError};
use plan::{Move, Plan};
use program::{Engine, message};
use step::{Program, Step};

pub use program::{Kind, Options};

/// Every workload of an engine but the mixed ones (`mixed-SEED`), without the engine's name.
pub fn names(kind: Kind) -> Vec<&'static str> {
    plan::names(kind)
}

/// The workload `NAME` of an engine, for instance `pull` or `mixed-7`.
///
/// # Errors
/// If there is none of that name.
pub fn workload(kind: Kind, name: &str, options: Options) -> Result<EngineWorkload, WorkloadError> {
    let plan = plan::plan(name).map_err(failed("read the plan"))?;
    let engine = if kind == Kind::Baleen { "baleen" } else { "docker" };
    let full_name = format!("{engine}/{name}");
    let images = plan.images();
    let address = images::address_of(&full_name);
    Ok(EngineWorkload { kind, full_name, plan, images, address, options, registry: None, engine: None })
}

/// An engine with something to do.
pub struct EngineWorkload {
    kind: Kind,
    full_name: String,
    plan: Plan,
    /// Names of all images that the plan pulls.
    images: Vec<String>,
    address: SocketAddr,
    options: Options,
    registry: Option<Arc<Stub>>,
    engine: Option<Engine>,
}

impl std::fmt::Debug for EngineWorkload {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("EngineWorkload").field(&self.full_name).finish()
    }
}

fn failed(action: &str) -> impl FnOnce(anyhow::Error) -> WorkloadError {
    let action = action.to_owned();
    move |error| WorkloadError::failed(action, error)
}

/// The note by which a recording names the bytes of its images.
const IMAGES_NOTE: &str = "images ";
/// The longest wait for a single thing that an engine was asked for.
const PATIENCE: Duration = Duration::from_secs(30);

impl Workload for EngineWorkload {
    fn name(&self) -> String {
        self.full_name.clone()
    }

    fn prepare(&mut self, place: &Place<'_>) -> Result<(), WorkloadError> {
        if self.plan.before.is_empty() {
            return Ok(());
        }
        self.launch(place).map_err(failed("start the engine"))?;
        let before = self.plan.before.clone();
        let done = before.iter().try_for_each(|one| self.carry_out(one, None));
        let ended = done.and_then(|()| self.engine.as_mut().context("no engine")?.stop());
        self.engine = None;
        ended.map_err(failed("prepare the store"))
    }

    fn start(&mut self, place: &Place<'_>) -> Result<(), WorkloadError> {
        self.launch(place).map_err(failed("start the engine"))
    }

    fn run(&mut self, _place: &Place<'_>, marks: &Marks) -> Result<(), WorkloadError> {
        let fingerprint = images::fingerprint(&self.images).map_err(failed("make the images"))?;
        marks.note(format!("{IMAGES_NOTE}{fingerprint}"));
        let moves = self.plan.moves.clone();
        let registry = self.registry.clone();
        let limit = |bytes_per_second| registry.iter().for_each(|registry| registry.limit_rate(bytes_per_second));
        limit(self.plan.bytes_per_second);
        let done = moves.iter().try_for_each(|one| self.carry_out(one, Some(marks)));
        limit(0);
        done.map_err(failed("do the work"))
    }

    fn stop(&mut self) {
        self.engine = None;
    }

    fn check(&mut self, place: &Place<'_>, history: &History) -> Result<Vec<Broken>, WorkloadError> {
        let fingerprint = images::fingerprint(&self.images).map_err(failed("make the images"))?;
        let noted = history.marks.iter().filter_map(|mark| mark.text.strip_prefix(IMAGES_NOTE));
        if let Some(other) = noted.into_iter().find(|noted| *noted != fingerprint) {
            return Err(failed("judge a recording")(anyhow::anyhow!("it has other images: {other}")));
        }
        // Only the registry is ours to have; an engine that does not start is the state's fault.
        self.serve().map_err(failed("serve the images"))?;
        let mut found = Vec::new();
        if self.kind == Kind::Baleen {
            let root = place.disk.join("root");
            let expected = if self.plan.repairs() { store::Health::Damaged } else { store::Health::Whole };
            found = store::check(&self.options, &root, expected).map_err(failed("run fsck"))?;
            if self.plan.repairs() {
                found.extend(self.end_repair(&root, history).map_err(failed("run fsck"))?);
            }
        }
        if let Err(error) = self.launch(place) {
            return Ok(vec![Broken::new("start", format!("the engine does not start: {error:#}"))]);
        }
        found.extend(judge::judge(self, history).map_err(failed("judge"))?);
        Ok(found)
    }
}

impl EngineWorkload {
    fn serve(&mut self) -> Result<()> {
        if self.registry.is_none() {
            self.registry = Some(images::registry(self.address, &self.images)?);
        }
        Ok(())
    }

    fn launch(&mut self, place: &Place<'_>) -> Result<()> {
        self.serve()?;
        self.engine = None;
        let root = place.disk.join("root");
        self.engine = Some(Engine::start(self.kind, &self.options, &root, place.run)?);
        Ok(())
    }

    fn engine(&self) -> Result<&Engine> {
        self.engine.as_ref().context("the engine does not run")
    }

    /// The reference by which the engine knows an image or a name.
    fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    fn carry_out(&mut self, one: &Move, marks: Option<&Marks>) -> Result<()> {
        match one {
            Move::Do(step) => self.promise(step, marks),
            Move::Both(one, two) => std::thread::scope(|scope| {
                if let Some(marks) = marks {
                    marks.begin(one.to_string());
                    marks.begin(two.to_string());
                }
                let this = &*self;
                let other = scope.spawn(move || this.perform(two, marks));
                let first = this.perform(one, marks);
                other.join().map_err(|_| anyhow::anyhow!("a step panicked"))??;
                first
            }),
            Move::KilledPull { image, after_bytes } => self.killed_pull(image, *after_bytes, marks),
            Move::EatenPull { image, after_bytes } => self.eaten_pull(image, *after_bytes, marks),
            Move::Damage(image) => store::damage(self.engine()?.root(), &images::sample(image)?.image),
            Move::Repair => self.repair(marks),
            Move::FillLog => self.fill_log(),
            Move::UntilCompacted => self.until_compacted(marks),
        }
    }

    /// Does one step, with its marks.
    fn promise(&self, step: &Step, marks: Option<&Marks>) -> Result<()> {
        if let Some(marks) = marks {
            marks.begin(step.to_string());
        }
        self.perform(step, marks)
    }

    /// Asks for a step that has begun, and acknowledges it. What is so already counts as done: a step can be done again.
    fn perform(&self, step: &Step, marks: Option<&Marks>) -> Result<()> {
        self.request(step, marks).with_context(|| step.to_string())?;
        if let Some(marks) = marks {
            marks.acknowledge(step.to_string());
        }
        Ok(())
    }

    fn request(&self, step: &Step, marks: Option<&Marks>) -> Result<()> {
        let engine = self.engine()?;
        let expect = |method: &str, path: String, body: Option<Value>, statuses: &[u16]| -> Result<Value> {
            let (status, value) = engine.ask(method, &path, body.as_ref())?;
            if !statuses.contains(&status) {
                bail!("{method} {path}: {status} {}", message(&value));
            }
            Ok(value)
        };
        match step {
            Step::Ready => drop(expect("GET", "/_ping".to_owned(), None, &[200])?),
            Step::Pull(image) => self.pull(image, marks)?,
            Step::Tag { from, to } => {
                let (repository, tag) = to.split_once(':').context("a name without a tag")?;
                let path =
                    format!("/images/{}/tag?repo={}&tag={tag}", self.reference(from), self.reference(repository));
                expect("POST", path, None, &[201])?;
            }
            Step::Untag(name) => {
                expect("DELETE", format!("/images/{}", self.reference(name)), None, &[200, 404])?;
            }
            Step::Remove(image) => {
                let id = images::sample(image)?.image.id();
                expect("DELETE", format!("/images/{id}?force=1"), None, &[200, 404])?;
            }
            Step::Prune => {
                let path = "/images/prune?filters=%7B%22dangling%22%3A%5B%22false%22%5D%7D";
                expect("POST", path.to_owned(), None, &[200])?;
            }
            Step::Create { name, image, program } => {
                let body = json!({
                    "Image": self.reference(image),
                    "Cmd": ["sh", "-c", program.script()],
                    "HostConfig": { "NetworkMode": "none", "RestartPolicy": { "Name": program.restart_policy() } },
                });
                // 409: it is there, which is as good where it is done again.
                expect("POST", format!("/containers/create?name={name}"), Some(body), &[201, 409])?;
            }
            Step::Start(name) => drop(expect("POST", format!("/containers/{name}/start"), None, &[204, 304])?),
            Step::Wait(name) => {
                let ended = expect("POST", format!("/containers/{name}/wait"), None, &[200])?;
                let code = ended["StatusCode"].as_i64();
                if code != Some(0) {
                    bail!("the program ended with {code:?}");
                }
            }
            Step::Stop(name) => drop(expect("POST", format!("/containers/{name}/stop?t=10"), None, &[204, 304])?),
            Step::Delete(name) => drop(expect("DELETE", format!("/containers/{name}"), None, &[204, 404])?),
            // 404: it is renamed already.
            Step::Rename { from, to } => {
                drop(expect("POST", format!("/containers/{from}/rename?name={to}"), None, &[204, 404])?);
            }
            Step::Update(name) => {
                let body = json!({ "RestartPolicy": { "Name": Program::Restarts.restart_policy() } });
                drop(expect("POST", format!("/containers/{name}/update"), Some(body), &[200])?);
            }
            Step::Volume(name) => {
                drop(expect("POST", "/volumes/create".to_owned(), Some(json!({ "Name": name })), &[201])?)
            }
            Step::DeleteVolume(name) => drop(expect("DELETE", format!("/volumes/{name}"), None, &[204, 404])?),
            Step::Load(image) => self.load(image)?,
            Step::Mount { name, image, volume } => {
                let body = json!({
                    "Image": self.reference(image),
                    "Cmd": ["sh", "-c", Program::Stays.script()],
                    "HostConfig": { "NetworkMode": "none", "Binds": [format!("{volume}:/etc")] },
                });
                expect("POST", format!("/containers/create?name={name}"), Some(body), &[201, 409])?;
            }
            Step::Layer(_) | Step::Repair => bail!("{step} is no request"),
        }
        Ok(())
    }

    /// Pulls, and acknowledges each layer that is said to be complete: of ours that is a promise (P1).
    fn pull(&self, image: &str, marks: Option<&Marks>) -> Result<()> {
        let (repository, tag) = image.split_once(':').context("an image without a tag")?;
        let path = format!("/images/create?fromImage={}&tag={tag}", self.reference(repository));
        let mut answer = http::request(&self.engine()?.socket(), "POST", &path, None)?;
        let status = answer.status;
        let mut text: Vec<u8> = Vec::new();
        while let Some(part) = answer.next_part()? {
            text.extend(part);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let Ok(line) = serde_json::from_slice::<Value>(&line) else { continue };
                if let Some(error) = line["error"].as_str() {
                    bail!("{error}");
                }
                if self.kind == Kind::Baleen
                    && line["status"] == "Pull complete"
                    && let (Some(id), Some(marks)) = (line["id"].as_str(), marks)
                {
                    marks.acknowledge(Step::Layer(id.to_owned()).to_string());
                }
            }
        }
        if status != 200 {
            let value: Value = serde_json::from_slice(&text).unwrap_or_default();
            bail!("{status} {}", message(&value));
        }
        Ok(())
    }

    fn load(&self, image: &str) -> Result<()> {
        let archive = images::sample(image)?.image.docker_archive(&self.reference(image));
        let answer = http::request(&self.engine()?.socket(), "POST", "/images/load?quiet=1", Some(&archive))?;
        let status = answer.status;
        let text = String::from_utf8_lossy(&answer.body()?).into_owned();
        if status != 200 || text.contains("\"error\"") {
            bail!("{status} {text}");
        }
        Ok(())
    }

    /// Repairs the store while the engine does not run.
    fn repair(&mut self, marks: Option<&Marks>) -> Result<()> {
        let engine = self.engine.as_mut().context("no engine")?;
        engine.stop()?;
        let root = engine.root().to_owned();
        if let Some(marks) = marks {
            marks.begin(Step::Repair.to_string());
        }
        let left = store::repair(&self.options, &root, &["--deep", "--repair"])?;
        if let Some(left) = left {
            bail!("the repair leaves something: {left}");
        }
        if let Some(marks) = marks {
            marks.acknowledge(Step::Repair.to_string());
        }
        self.engine.as_mut().context("no engine")?.start_again(&self.options)
    }

    /// Ends the repair of a store, if that was cut, or looks whether it has held.
    fn end_repair(&self, root: &std::path::Path, history: &History) -> Result<Vec<Broken>> {
        let is_done = |mark: &&crate::workload::Mark| {
            mark.kind == MarkKind::Acknowledged && mark.text == Step::Repair.to_string()
        };
        let options: &[&str] = match history.marks.iter().find(is_done) {
            Some(_) => &["--deep"],
            None => &["--deep", "--repair"],
        };
        let left = store::repair(&self.options, root, options)?;
        Ok(left.map(|left| Broken::new("P9", format!("fsck {} says: {left}", options.join(" ")))).into_iter().collect())
    }

    /// Pulls an image, and does something once so many bytes of its last layer have come. Gives how the pull ended.
    fn pull_until(
        &self,
        image: &str,
        after_bytes: u64,
        marks: Option<&Marks>,
        then: impl FnOnce() -> Result<()>,
    ) -> Result<Result<()>> {
        let registry = self.registry.clone().context("no registry")?;
        let sample = images::sample(image)?;
        let layer = sample.image.layers.last().context("an image without layers")?.digest();
        if let Some(marks) = marks {
            marks.begin(Step::Pull(image.to_owned()).to_string());
        }
        registry.hold(&layer, after_bytes);
        std::thread::scope(|scope| {
            let pull = scope.spawn(|| self.pull(image, marks));
            let held = registry.wait_held(PATIENCE);
            let done = then();
            registry.release();
            let ended = pull.join().map_err(|_| anyhow::anyhow!("a pull panicked"))?;
            done?;
            if !held {
                bail!("the pull of {image} never came to byte {after_bytes}: {ended:?}");
            }
            Ok(ended)
        })
    }

    /// A pull whose daemon is killed on the way, and started again.
    fn killed_pull(&mut self, image: &str, after_bytes: u64, marks: Option<&Marks>) -> Result<()> {
        let socket = self.engine()?.socket();
        if self.pull_until(image, after_bytes, marks, || kill_by_socket(&socket))?.is_ok() {
            bail!("the pull of {image} ended although it was held");
        }
        let engine = self.engine.as_mut().context("no engine")?;
        engine.kill();
        engine.start_again(&self.options)
    }

    /// A pull on a disk of which one write fails, and somebody else is told of that first.
    fn eaten_pull(&self, image: &str, after_bytes: u64, marks: Option<&Marks>) -> Result<()> {
        let root = self.engine()?.root().to_owned();
        let eat = || {
            let folder = std::fs::File::open(&root)?;
            match rustix::fs::syncfs(&folder) {
                Err(rustix::io::Errno::IO) => Ok(()),
                other => bail!("no write had failed when the file system was synced: {other:?}"),
            }
        };
        self.pull_until(image, after_bytes, marks, eat)?.with_context(|| format!("pull {image}"))?;
        if let Some(marks) = marks {
            marks.acknowledge(Step::Pull(image.to_owned()).to_string());
        }
        Ok(())
    }

    /// Numbers of the newest base of the log and of its newest segment.
    fn log_ends(&self) -> Result<(u64, u64)> {
        let folder = self.engine()?.root().join("wal");
        let names = std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let (mut base, mut last) = (0, 0);
        for entry in names {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.len() == 16);
            let Some(number) = name.and_then(|name| u64::from_str_radix(name, 16).ok()) else { continue };
            let mut kind = [0; 4];
            std::fs::File::open(&path)?.read_exact_at(&mut kind, SEGMENT_KIND_AT)?;
            if u32::from_le_bytes(kind) == SEGMENT_IS_BASE {
                base = base.max(number);
            }
            last = last.max(number);
        }
        Ok((base, last))
    }

    fn tag_and_untag(&self, marks: Option<&Marks>) -> Result<()> {
        let image = self.images.first().context("no image")?.clone();
        self.promise(&Step::Tag { from: image, to: "t:1".to_owned() }, marks)?;
        self.promise(&Step::Untag("t:1".to_owned()), marks)
    }

    fn fill_log(&self) -> Result<()> {
        let (first_base, _) = self.log_ends()?;
        for _ in 0..3_000 {
            let (base, last) = self.log_ends()?;
            if base > first_base && last >= base + SEGMENTS_BEFORE_COMPACTION {
                return Ok(());
            }
            self.tag_and_untag(None)?;
        }
        bail!("the log does not grow")
    }

    fn until_compacted(&self, marks: Option<&Marks>) -> Result<()> {
        let (before, _) = self.log_ends()?;
        for _ in 0..200 {
            self.tag_and_untag(marks)?;
            if self.log_ends()?.0 > before {
                return Ok(());
            }
        }
        bail!("the log is never compacted: its base is still {before}")
    }
}

/// Segments after the base at which the log is one short of its compaction (`docs/formats/wal.md`).
const SEGMENTS_BEFORE_COMPACTION: u64 = 15;
/// Where a segment's header has its kind, and that of a base.
const SEGMENT_KIND_AT: u64 = 12;
const SEGMENT_IS_BASE: u32 = 1;

/// SIGKILL to whoever listens at a socket of ours.
fn kill_by_socket(socket: &std::path::Path) -> Result<()> {
    let stream = std::os::unix::net::UnixStream::connect(socket)?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    rustix::process::kill_process(peer.pid, rustix::process::Signal::KILL)?;
    Ok(())
}

/// `baleen/NAME` or `docker/NAME` as a workload.
///
/// # Errors
/// If there is none of that name.
pub fn named(full_name: &str, program: Option<PathBuf>) -> Result<Option<EngineWorkload>, WorkloadError> {
    let (kind, name) = match full_name.split_once('/') {
        Some(("baleen", name)) => (Kind::Baleen, name),
        Some(("docker", name)) => (Kind::Docker, name),
        _ => return Ok(None),
    };
    let options = Options { program, variables: Vec::new() };
    workload(kind, name, options).map(Some)
}
