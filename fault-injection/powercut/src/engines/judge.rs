//! Judges an engine that has started on a state: what it says, what lies on the disk, whether the work can be done again, and
//! whether everything can be removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_tests::command::wait_for;
use baleen_tests::http;
use baleen_tests::image::{busybox_entries, digest};
use baleen_tests::store::{Allowed, folders_of, layer_differences, ownerless};
use baleen_tests::tree::{self, Tree};
use serde_json::Value;

use super::images::{Sample, sample};
use super::program::{Engine, Kind};
use super::step::{Container, Phase, Program, Step, WRITTEN, World};
use super::{EngineWorkload, Move, store};
use crate::workload::{Broken, History, MarkKind};

/// Differences that are told of one thing.
const DIFFERENCES_MAX: usize = 4;
/// How long containers may take to run again.
const RESTART_PATIENCE: Duration = Duration::from_secs(10);
/// What the engine's log has of a layer that was not gone on with.
const STARTED_ANEW: [&str; 3] =
    ["cannot be resumed and starts anew", "a layer is fetched again", "that were kept of a layer are fetched anew"];
/// How long the trash may take to drain.
const TRASH_PATIENCE: Duration = Duration::from_secs(10);

/// What a history amounts to.
struct Expected {
    /// After everything that was acknowledged.
    world: World,
    /// Begun and not acknowledged.
    in_flight: Vec<Step>,
    /// Short digests of layers that were acknowledged, and that nothing can have removed since.
    layers: BTreeSet<String>,
    /// Containers whose program has ended by itself, so that its own fsync has.
    waited: BTreeSet<String>,
    /// What runs in each container.
    programs: BTreeMap<String, Program>,
    /// Images whose pull had begun at some time.
    begun: BTreeSet<String>,
    /// Volumes that have what their image has at its `etc`, and the image.
    mounted: BTreeMap<String, String>,
}

impl Expected {
    fn of(workload: &EngineWorkload, history: &History) -> Result<Self> {
        let mut expected = Self {
            world: World::default(),
            in_flight: Vec::new(),
            layers: BTreeSet::new(),
            waited: BTreeSet::new(),
            programs: BTreeMap::new(),
            begun: BTreeSet::new(),
            mounted: BTreeMap::new(),
        };
        for one in &workload.plan.before {
            match one {
                Move::Do(step) => expected.acknowledge(step)?,
                Move::KilledPull { image, .. } => drop(expected.begun.insert(image.clone())),
                Move::Both(..)
                | Move::EatenPull { .. }
                | Move::FillLog
                | Move::UntilCompacted
                | Move::Damage(_)
                | Move::Repair => {}
            }
        }
        for mark in &history.marks {
            let step: Step = match mark.kind {
                MarkKind::Note => continue,
                MarkKind::Begun | MarkKind::Acknowledged => mark.text.parse()?,
            };
            if mark.kind == MarkKind::Acknowledged {
                // A step that was cut and is done again is one step.
                expected.in_flight.retain(|open| *open != step);
                expected.acknowledge(&step)?;
                continue;
            }
            match &step {
                Step::Pull(image) | Step::Load(image) => drop(expected.begun.insert(image.clone())),
                // What these may remove, they may have removed.
                Step::Untag(_) | Step::Remove(_) | Step::Prune => expected.layers.clear(),
                _ => {}
            }
            if !expected.in_flight.contains(&step) {
                expected.in_flight.push(step);
            }
        }
        Ok(expected)
    }

    fn acknowledge(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Layer(blob) => drop(self.layers.insert(blob.clone())),
            Step::Wait(name) => drop(self.waited.insert(name.clone())),
            Step::Create { name, program, .. } => drop(self.programs.insert(name.clone(), *program)),
            Step::Delete(name) => drop(self.waited.remove(name)),
            Step::Rename { from, to } => {
                if let Some(program) = self.programs.remove(from) {
                    self.programs.insert(to.clone(), program);
                }
                if self.waited.remove(from) {
                    self.waited.insert(to.clone());
                }
            }
            Step::Pull(image) | Step::Load(image) => drop(self.begun.insert(image.clone())),
            Step::Mount { name, image, volume } => {
                self.mounted.insert(volume.clone(), image.clone());
                self.programs.insert(name.clone(), Program::Stays);
            }
            Step::DeleteVolume(name) => drop(self.mounted.remove(name)),
            _ => {}
        }
        self.world = self.world.after(step)?;
        Ok(())
    }

    fn in_flight_programs(&self) -> impl Iterator<Item = (&String, Program)> {
        self.in_flight.iter().filter_map(|step| match step {
            Step::Create { name, program, .. } => Some((name, *program)),
            Step::Mount { name, .. } => Some((name, Program::Stays)),
            Step::Rename { from, to } => self.programs.get(from).map(|program| (to, *program)),
            _ => None,
        })
    }
}

/// One judgement.
struct Judge<'a> {
    workload: &'a EngineWorkload,
    engine: &'a Engine,
    samples: Vec<(String, std::sync::Arc<Sample>)>,
    expected: Expected,
    broken: Vec<Broken>,
    /// Folders of layers that have been compared.
    compared: BTreeSet<std::path::PathBuf>,
}

pub(super) fn judge(workload: &EngineWorkload, history: &History) -> Result<Vec<Broken>> {
    let engine = workload.engine()?;
    let expected = Expected::of(workload, history)?;
    let samples = workload.images.iter().map(|name| Ok((name.clone(), sample(name)?))).collect::<Result<_>>()?;
    let mut judge = Judge { workload, engine, samples, expected, broken: Vec::new(), compared: BTreeSet::new() };
    // An engine that stops answering is the state's fault: the tools here are a socket and a file system.
    if let Err(error) = judge.all() {
        judge.broken.push(Broken::new("answers", format!("{error:#}")));
    }
    Ok(judge.broken)
}

impl Judge<'_> {
    fn all(&mut self) -> Result<()> {
        let worlds = self.expected.world.around_all(&self.expected.in_flight)?;
        let mut found = self.observe()?;
        if worlds.iter().any(World::runs) && !worlds.contains(&found) {
            // Containers are started again beside the first answers.
            let settled = wait_for("containers to run again", RESTART_PATIENCE, || {
                self.observe().ok().filter(|found| worlds.contains(found))
            });
            found = settled.or_else(|_| self.observe())?;
        }
        if !worlds.contains(&found) {
            let what = found.differences(&self.expected.world);
            let open: Vec<String> = self.expected.in_flight.iter().map(Step::to_string).collect();
            self.say("P1", format!("after what was acknowledged, and {open:?} under way, {what}"));
        }
        self.images(&found)?;
        self.containers(&found)?;
        if self.workload.kind == Kind::Baleen {
            self.damage()?;
            self.layers_on_disk()?;
            self.blobs_on_disk()?;
            self.owners("after its start")?;
        }
        let mounted = self.expected.mounted.clone();
        for (volume, image) in mounted.iter().filter(|(volume, _)| found.volumes.contains(*volume)) {
            self.copied(volume, image, false)?;
        }
        for step in self.expected.in_flight.clone() {
            if let Step::Mount { image, volume, .. } = &step
                && found.volumes.contains(volume)
            {
                self.copied(volume, image, true)?;
            }
        }
        self.again(&found)?;
        self.checkpoints();
        self.remove_everything()
    }

    fn say(&mut self, promise: &str, what: String) {
        self.broken.push(Broken::new(promise, what));
    }

    /// What the engine says that it has.
    fn observe(&self) -> Result<World> {
        let mut world = World::default();
        let prefix = self.workload.reference("");
        for image in self.engine.get("/images/json")?.as_array().context("no list of images")? {
            let id = image["Id"].as_str().context("an image without an ID")?.to_owned();
            for tag in image["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if tag != "<none>:<none>" {
                    world.tags.insert(tag.strip_prefix(&prefix).unwrap_or(tag).to_owned(), id.clone());
                }
            }
            world.images.insert(id);
        }
        for container in self.engine.get("/containers/json?all=1")?.as_array().context("no list of containers")? {
            let name = container["Names"][0].as_str().unwrap_or_default().trim_start_matches('/').to_owned();
            let image = container["ImageID"].as_str().unwrap_or_default().to_owned();
            let phase = match container["State"].as_str().unwrap_or_default() {
                "created" => Phase::Created,
                "running" => Phase::Runs,
                _ => Phase::Ended,
            };
            let inspected = self.engine.ask("GET", &format!("/containers/{name}/json"), None)?.1;
            let restarts = inspected["HostConfig"]["RestartPolicy"]["Name"] == Program::Restarts.restart_policy();
            world.containers.insert(name, Container { image, restarts, phase });
        }
        for volume in self.engine.get("/volumes")?["Volumes"].as_array().into_iter().flatten() {
            world.volumes.insert(volume["Name"].as_str().unwrap_or_default().to_owned());
        }
        Ok(world)
    }

    /// Every listed image, layer by layer.
    fn images(&mut self, found: &World) -> Result<()> {
        for id in &found.images {
            let Some((name, sample)) = self.samples.iter().find(|(_, sample)| sample.image.id() == *id).cloned() else {
                self.say("P3", format!("image {id} was never pulled"));
                continue;
            };
            let (status, inspected) = self.engine.ask("GET", &format!("/images/{id}/json"), None)?;
            if status != 200 {
                self.say("P2", format!("image {name} is listed and cannot be inspected: {status}"));
                continue;
            }
            let folders = match folders_of(&inspected) {
                Ok(folders) => folders,
                Err(error) => {
                    self.say("P2", format!("image {name}: {error:#}"));
                    continue;
                }
            };
            if folders.len() != sample.image.layers.len() {
                self.say("P2", format!("image {name} has {} layers of {}", folders.len(), sample.image.layers.len()));
            }
            for (folder, layer) in folders.iter().zip(&sample.image.layers) {
                self.compare(&format!("image {name}"), folder, &sample.trees[&layer.diff_id()]);
            }
        }
        Ok(())
    }

    /// Compares a layer with its reference, once.
    fn compare(&mut self, what: &str, folder: &Path, expected: &Tree) {
        if !self.compared.insert(folder.to_owned()) {
            return;
        }
        let shown = folder.strip_prefix(self.engine.root()).unwrap_or(folder).display().to_string();
        match layer_differences(folder, expected) {
            Ok(differences) if differences.is_empty() => {}
            Ok(differences) => {
                let some = differences[..differences.len().min(DIFFERENCES_MAX)].join("; ");
                self.say("P2", format!("{what}: {shown} differs in {} names: {some}", differences.len()));
            }
            Err(error) => self.say("P2", format!("{what}: {shown} cannot be read: {error:#}")),
        }
    }

    fn containers(&mut self, found: &World) -> Result<()> {
        for name in found.containers.keys() {
            let program = self.expected.programs.get(name).copied();
            let program = program.or_else(|| {
                self.expected.in_flight_programs().find(|(other, _)| *other == name).map(|(_, program)| program)
            });
            let Some(program) = program else {
                self.say("P1", format!("container {name} was never made"));
                continue;
            };
            let (status, inspected) = self.engine.ask("GET", &format!("/containers/{name}/json"), None)?;
            if status != 200 {
                self.say("P2", format!("container {name} is listed and cannot be inspected: {status}"));
                continue;
            }
            if inspected["Config"]["Cmd"][2] != program.script() {
                self.say("P2", format!("container {name} has another command: {}", inspected["Config"]["Cmd"]));
            }
            let lines = self.log_lines(name)?;
            let whole = program.lines();
            // Each run of a program that is started again begins anew.
            let prefix =
                program == Program::Restarts && lines.iter().all(|line| *line == whole[0]) || whole.starts_with(&lines);
            if !prefix {
                self.say("P1", format!("the log of {name} is no prefix of what was printed: {lines:?}"));
            }
            if self.expected.waited.contains(name) && program == Program::Writes {
                self.written(name, &inspected)?;
            }
        }
        Ok(())
    }

    /// What an image has at `etc` has become the content of a volume, whole; or, where that was cut, none of it.
    fn copied(&mut self, volume: &str, image: &str, may_be_empty: bool) -> Result<()> {
        let sample = sample(image)?;
        let layer = sample.image.layers.first().context("an image without layers")?.diff_id();
        let source = self.engine.root().join("layers").join(layer.trim_start_matches("sha256:")).join("fs/etc");
        let data = self.engine.root().join("volumes").join(volume).join("_data");
        if may_be_empty && names_in(&data)?.is_empty() {
            return Ok(());
        }
        let differences = tree::differences(&tree::read(&data)?, &tree::read(&source)?);
        if !differences.is_empty() {
            let some = differences[..differences.len().min(DIFFERENCES_MAX)].join("; ");
            self.say("P2", format!("volume {volume} is not what {image} has: {some}"));
        }
        Ok(())
    }

    /// What a program in a container has synced by itself is there.
    fn written(&mut self, name: &str, inspected: &Value) -> Result<()> {
        let upper = inspected["GraphDriver"]["Data"]["UpperDir"].as_str().context("a container without an upper")?;
        let program = busybox_entries()?.into_iter().find(|entry| entry.name == "bin/busybox").context("no busybox")?;
        let expected = &program.content[..WRITTEN.1.min(program.content.len())];
        match fs::read(Path::new(upper).join(WRITTEN.0)) {
            Ok(bytes) if bytes == expected => {}
            Ok(bytes) => {
                let what = format!("what {name} wrote and synced itself has {} bytes, other ones", bytes.len());
                self.say("P1", what);
            }
            Err(error) => self.say("P1", format!("what {name} wrote and synced itself is gone: {error}")),
        }
        Ok(())
    }

    fn log_lines(&mut self, name: &str) -> Result<Vec<String>> {
        let path = format!("/containers/{name}/logs?stdout=1&stderr=1");
        let answer = http::request(&self.engine.socket(), "GET", &path, None)?;
        let status = answer.status;
        let bytes = answer.body()?;
        if status != 200 {
            self.say("P2", format!("the log of {name} cannot be read: {status}"));
            return Ok(Vec::new());
        }
        // Frames of eight bytes before each part: stream, three zeros, length.
        let mut text = Vec::new();
        let mut rest = &bytes[..];
        while let Some((header, body)) = rest.split_at_checked(8) {
            let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
            let (part, next) = body.split_at(length.min(body.len()));
            text.extend_from_slice(part);
            rest = next;
        }
        Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
    }

    /// A power cut damages nothing: an engine that says so has lost something, or cannot tell a torn end from damage.
    fn damage(&mut self) -> Result<()> {
        let info = self.engine.get("/info")?;
        let told: Vec<&str> = info["Warnings"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for warning in told.into_iter().filter(|text| text.contains("store was damaged")) {
            self.say("P2", format!("after a power cut the engine says: {warning}"));
        }
        Ok(())
    }

    /// What a checkpoint says of the disk is so after any cut, so no layer that has one is begun anew (P5). The engine finds out what
    /// is missing, and says so in its log.
    fn checkpoints(&mut self) {
        let Engine::Baleen(daemon) = self.engine else { return };
        for line in daemon.whole_log().lines().filter(|line| STARTED_ANEW.iter().any(|words| line.contains(words))) {
            self.broken.push(Broken::new("P5", format!("after a power cut the engine says: {line}")));
        }
    }

    /// Every layer in its place, whether an image has it or not: what was acknowledged as complete is there.
    fn layers_on_disk(&mut self) -> Result<()> {
        let mut by_folder: BTreeMap<String, (String, String)> = BTreeMap::new();
        for (_, sample) in &self.samples {
            for layer in &sample.image.layers {
                let short = layer.digest()["sha256:".len()..][..12].to_owned();
                by_folder.insert(layer.diff_id()["sha256:".len()..].to_owned(), (layer.diff_id(), short));
            }
        }
        let mut there = BTreeSet::new();
        let folder = self.engine.root().join("layers");
        for name in names_in(&folder)? {
            let Some((diff_id, short)) = by_folder.get(&name[..name.len().min(64)]).cloned() else {
                self.say("P3", format!("layers/{name} is no layer of any image"));
                continue;
            };
            there.insert(short);
            let tree = self.samples.iter().find_map(|(_, sample)| sample.trees.get(&diff_id)).cloned();
            if let Some(tree) = tree {
                self.compare("a stored layer", &folder.join(&name).join("fs"), &tree);
            }
        }
        for short in self.expected.layers.clone() {
            if !there.contains(&short) {
                self.say("P1", format!("layer {short} was said to be complete and is gone"));
            }
        }
        Ok(())
    }

    /// Every blob is what its name says.
    fn blobs_on_disk(&mut self) -> Result<()> {
        let folder = self.engine.root().join("blobs/sha256");
        for name in names_in(&folder)? {
            let bytes = fs::read(folder.join(&name))?;
            if digest(&bytes) != format!("sha256:{name}") {
                self.say("P3", format!("blobs/sha256/{name} has other bytes ({} of them)", bytes.len()));
            }
        }
        Ok(())
    }

    /// Nothing below the root belongs to nobody.
    fn owners(&mut self, when: &str) -> Result<()> {
        let Engine::Baleen(daemon) = self.engine else { return Ok(()) };
        let mut allowed = Allowed::default();
        for (name, sample) in &self.samples {
            if self.expected.begun.contains(name) {
                let pull = Allowed::pull_of(&sample.image);
                allowed.layers.extend(pull.layers);
                allowed.blobs.extend(pull.blobs);
            }
        }
        let stray = self.without_quarantine(ownerless(daemon, &allowed)?);
        if !stray.is_empty() {
            self.say("owners", format!("{when} nobody owns {stray:?}"));
        }
        Ok(())
    }

    /// What a repair has put aside waits for a person.
    fn without_quarantine(&self, mut paths: Vec<String>) -> Vec<String> {
        paths.retain(|path| !self.workload.plan.repairs() || !path.starts_with("quarantine/"));
        paths
    }

    /// What was under way can be done again, and every image can be pulled again.
    fn again(&mut self, found: &World) -> Result<()> {
        let mut expected = self.expected.world.clone();
        for step in self.expected.in_flight.clone() {
            if let Step::Start(name) | Step::Wait(name) | Step::Stop(name) = &step
                && !found.containers.contains_key(name)
            {
                continue;
            }
            // A cut repair was ended before the engine has started.
            if step == Step::Repair {
                continue;
            }
            // The program of a cut `wait` runs again first.
            if let Step::Wait(name) = &step {
                self.redo(&Step::Start(name.clone()));
            }
            self.redo(&step);
            expected = expected.after(&step)?;
        }
        let pulled: Vec<String> =
            expected.tags.keys().filter(|name| self.workload.images.contains(name)).cloned().collect();
        for name in pulled {
            self.redo(&Step::Pull(name));
        }
        for container in self.running()? {
            self.engine.ask("POST", &format!("/containers/{container}/stop?t=1"), None)?;
        }
        wait_for("containers to end", Duration::from_secs(10), || {
            self.running().is_ok_and(|left| left.is_empty()).then_some(())
        })?;
        let before = self.broken.len();
        let mut now = self.observe()?;
        // Whether they run is not what this asks.
        for (name, container) in &mut now.containers {
            container.phase = expected.containers.get(name).map_or(container.phase, |expected| expected.phase);
        }
        if now != expected && before == self.broken.len() {
            let what = now.differences(&expected);
            self.say("again", format!("once everything was done again, {what}"));
        }
        self.images(&now)
    }

    fn running(&self) -> Result<Vec<String>> {
        let list = self.engine.get("/containers/json")?;
        Ok(list.as_array().into_iter().flatten().filter_map(|one| Some(one["Id"].as_str()?.to_owned())).collect())
    }

    fn redo(&mut self, step: &Step) {
        if let Err(error) = self.workload.request(step, None) {
            self.say("again", format!("{step} cannot be done again: {error:#}"));
        }
    }

    /// Everything can be removed, and then nothing is left.
    fn remove_everything(&mut self) -> Result<()> {
        let world = self.observe()?;
        let mut requests: Vec<(&str, String)> = Vec::new();
        requests.extend(world.containers.keys().map(|name| ("DELETE", format!("/containers/{name}?force=1"))));
        requests.extend(world.volumes.iter().map(|name| ("DELETE", format!("/volumes/{name}"))));
        requests.extend(world.images.iter().map(|id| ("DELETE", format!("/images/{id}?force=1"))));
        requests.push(("POST", "/images/prune?filters=%7B%22dangling%22%3A%5B%22false%22%5D%7D".to_owned()));
        for (method, path) in requests {
            let (status, answer) = self.engine.ask(method, &path, None)?;
            if !matches!(status, 200 | 204) {
                self.say("remove", format!("{method} {path}: {status} {}", super::message(&answer)));
            }
        }
        let root = self.engine.root().to_owned();
        let kind = self.workload.kind;
        if kind == Kind::Baleen {
            // Of ours the prune answers when everything is gone, and the space is that of an empty store.
            let left = self.without_quarantine(leftovers(kind, &root)?);
            if !left.is_empty() {
                self.say("orphans", format!("when the prune answered there was still {left:?}"));
            }
            if let Some(what) = store::larger_than_empty(&root)? {
                self.say("orphans", format!("when the prune answered {what}"));
            }
            return Ok(());
        }
        let emptied = wait_for("the trash to drain", TRASH_PATIENCE, || {
            leftovers(kind, &root).is_ok_and(|left| left.is_empty()).then_some(())
        });
        if emptied.is_err() {
            self.say("orphans", format!("after everything was removed there is still {:?}", leftovers(kind, &root)?));
        }
        Ok(())
    }
}

/// Names in a folder; none if there is no such folder.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot list {}", folder.display())),
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
    }
}

/// Objects that an engine without images, containers and volumes still has on its disk.
fn leftovers(kind: Kind, root: &Path) -> Result<Vec<String>> {
    let folders: &[&str] = match kind {
        Kind::Baleen => &[
            "blobs/sha256",
            "blobs/sha512",
            "layers",
            "partial",
            "staging",
            "trash",
            "quarantine",
            "containers",
            "volumes",
        ],
        Kind::Docker => {
            &["overlay2", "image/overlay2/layerdb/sha256", "image/overlay2/imagedb/content/sha256", "containers"]
        }
    };
    let mut left = Vec::new();
    for folder in folders {
        let names = names_in(&root.join(folder))?;
        left.extend(
            names
                .into_iter()
                .filter(|name| *folder != "overlay2" || name != "l")
                .map(|name| format!("{folder}/{name}")),
        );
    }
    if kind == Kind::Baleen {
        // A segment and its reserve: the log of an empty store.
        let log = names_in(&root.join("wal"))?;
        left.extend(log.into_iter().filter(|name| name != "spare").skip(1).map(|name| format!("wal/{name}")));
    }
    Ok(left)
}
