//! What a user asks an engine for, and what is true afterwards: a plain model beside the engine.
//!
//! Z1  A step is one promise: its effect is there whole or not at all. A prune alone removes one thing after the other, and a
//!     container's new volume may be there without it.
//! Z2  The text of a step is all that a recording keeps of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context as _, Result, bail};

use super::images::sample;

/// One request, or the requests that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The engine answers for the first time.
    Ready,
    /// Pull this image.
    Pull(String),
    /// Load this image from an archive.
    Load(String),
    /// Give the image `from` the name `to`.
    Tag { from: String, to: String },
    /// Remove a name, and the image with its last name.
    Untag(String),
    /// Remove an image with all its names.
    Remove(String),
    /// Remove every image that no container uses, and what cut pulls have left.
    Prune,
    /// Make a container.
    Create { name: String, image: String, program: Program },
    /// Make a container with a fresh volume at the image's `etc`: what is there becomes the volume's content.
    Mount { name: String, image: String, volume: String },
    /// Repair the store while no engine has it.
    Repair,
    /// Start it.
    Start(String),
    /// Wait for its end.
    Wait(String),
    /// Stop it.
    Stop(String),
    /// Remove it.
    Delete(String),
    /// Give the container `from` the name `to`.
    Rename { from: String, to: String },
    /// Have it started again unless it is stopped.
    Update(String),
    /// Make a volume.
    Volume(String),
    /// Remove it.
    DeleteVolume(String),
    /// One layer of a pull is complete; the short digest of its blob.
    Layer(String),
}

/// What runs in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    /// Prints lines, writes a file, syncs it by itself, and ends.
    Writes,
    /// Prints a line and stays until it is stopped.
    Stays,
    /// The same in a container that is started again unless it was stopped.
    Restarts,
}

/// The file that [`Program::Writes`] leaves, and which part of the image's busybox it is.
pub(super) const WRITTEN: (&str, usize) = ("data", 128 << 10);
/// How many lines it prints before.
pub(super) const LINES: usize = 20;

impl Program {
    pub(super) fn script(self) -> String {
        match self {
            Self::Writes => format!(
                "for n in $(seq {LINES}); do echo line $n; done; dd if=/bin/busybox of=/{} bs=64k count={} conv=fsync 2>/dev/null",
                WRITTEN.0,
                WRITTEN.1 >> 16
            ),
            Self::Stays | Self::Restarts => "trap 'exit 0' TERM; echo line 1; while :; do sleep 0.05; done".to_owned(),
        }
    }

    /// The lines that it prints, as far as it comes.
    pub(super) fn lines(self) -> Vec<String> {
        let count = if self == Self::Writes { LINES } else { 1 };
        (1..=count).map(|number| format!("line {number}")).collect()
    }

    /// Docker's name of the container's restart policy.
    pub(super) fn restart_policy(self) -> &'static str {
        if self == Self::Restarts { "unless-stopped" } else { "no" }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Writes => "writes",
            Self::Stays => "stays",
            Self::Restarts => "restarts",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => formatter.write_str("ready"),
            Self::Pull(image) => write!(formatter, "pull {image}"),
            Self::Load(image) => write!(formatter, "load {image}"),
            Self::Mount { name, image, volume } => write!(formatter, "mount {name} {image} {volume}"),
            Self::Repair => formatter.write_str("repair"),
            Self::Tag { from, to } => write!(formatter, "tag {from} {to}"),
            Self::Untag(name) => write!(formatter, "rmi {name}"),
            Self::Remove(image) => write!(formatter, "rmi-all {image}"),
            Self::Prune => formatter.write_str("prune"),
            Self::Create { name, image, program } => write!(formatter, "create {name} {image} {}", program.word()),
            Self::Start(name) => write!(formatter, "start {name}"),
            Self::Wait(name) => write!(formatter, "wait {name}"),
            Self::Stop(name) => write!(formatter, "stop {name}"),
            Self::Delete(name) => write!(formatter, "rm {name}"),
            Self::Rename { from, to } => write!(formatter, "rename {from} {to}"),
            Self::Update(name) => write!(formatter, "update {name}"),
            Self::Volume(name) => write!(formatter, "volume {name}"),
            Self::DeleteVolume(name) => write!(formatter, "volume-rm {name}"),
            Self::Layer(blob) => write!(formatter, "layer {blob}"),
        }
    }
}

impl std::str::FromStr for Step {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let own = |word: &str| word.to_owned();
        Ok(match words[..] {
            ["ready"] => Self::Ready,
            ["pull", image] => Self::Pull(own(image)),
            ["load", image] => Self::Load(own(image)),
            ["mount", name, image, volume] => Self::Mount { name: own(name), image: own(image), volume: own(volume) },
            ["repair"] => Self::Repair,
            ["tag", from, to] => Self::Tag { from: own(from), to: own(to) },
            ["rmi", name] => Self::Untag(own(name)),
            ["rmi-all", image] => Self::Remove(own(image)),
            ["prune"] => Self::Prune,
            ["create", name, image, program] => {
                let program = match program {
                    "writes" => Program::Writes,
                    "stays" => Program::Stays,
                    "restarts" => Program::Restarts,
                    other => bail!("not a program: {other}"),
                };
                Self::Create { name: own(name), image: own(image), program }
            }
            ["start", name] => Self::Start(own(name)),
            ["wait", name] => Self::Wait(own(name)),
            ["stop", name] => Self::Stop(own(name)),
            ["rm", name] => Self::Delete(own(name)),
            ["rename", from, to] => Self::Rename { from: own(from), to: own(to) },
            ["update", name] => Self::Update(own(name)),
            ["volume", name] => Self::Volume(own(name)),
            ["volume-rm", name] => Self::DeleteVolume(own(name)),
            ["layer", blob] => Self::Layer(own(blob)),
            _ => bail!("not a step: {text}"),
        })
    }
}

/// What an engine has, as its users see it after a reboot.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct World {
    /// Image IDs by name.
    pub(super) tags: BTreeMap<String, String>,
    /// Image IDs.
    pub(super) images: BTreeSet<String>,
    /// Containers by name.
    pub(super) containers: BTreeMap<String, Container>,
    /// Volumes.
    pub(super) volumes: BTreeSet<String>,
}

/// A container after a reboot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Container {
    /// Its image's ID.
    pub(super) image: String,
    /// Whether it is started again unless it was stopped.
    pub(super) restarts: bool,
    /// What it does.
    pub(super) phase: Phase,
}

/// What a container does after a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// It was never started.
    Created,
    /// It has ended, by itself, by a stop or by the cut.
    Ended,
    /// It runs (again).
    Runs,
}

impl World {
    /// After this step.
    pub(super) fn after(&self, step: &Step) -> Result<Self> {
        let mut world = self.clone();
        match step {
            Step::Pull(name) | Step::Load(name) => {
                let id = sample(name)?.image.id();
                world.tags.insert(name.clone(), id.clone());
                world.images.insert(id);
            }
            Step::Tag { from, to } => {
                // Only the layers' owner may have vanished in another possible world.
                if let Some(id) = world.tags.get(from).cloned() {
                    world.tags.insert(to.clone(), id);
                }
            }
            Step::Untag(name) => {
                if let Some(id) = world.tags.remove(name)
                    && !world.tags.values().any(|other| *other == id)
                {
                    world.images.remove(&id);
                }
            }
            Step::Remove(image) => world.drop_image(&sample(image)?.image.id()),
            Step::Prune => {
                for id in world.unused() {
                    world.drop_image(&id);
                }
            }
            Step::Create { name, image, program } => {
                let image = sample(image)?.image.id();
                let restarts = *program == Program::Restarts;
                let container = Container { image, restarts, phase: Phase::Created };
                world.containers.entry(name.clone()).or_insert(container);
            }
            Step::Mount { name, image, volume } => {
                let image = sample(image)?.image.id();
                let container = Container { image, restarts: false, phase: Phase::Created };
                world.containers.entry(name.clone()).or_insert(container);
                world.volumes.insert(volume.clone());
            }
            Step::Start(name) => {
                let container = world.containers.get_mut(name).context("no container to start")?;
                container.phase = if container.restarts { Phase::Runs } else { Phase::Ended };
            }
            Step::Stop(name) => {
                let container = world.containers.get_mut(name).context("no container to stop")?;
                if container.phase == Phase::Runs {
                    container.phase = Phase::Ended;
                }
            }
            Step::Delete(name) => drop(world.containers.remove(name)),
            Step::Rename { from, to } => {
                // Done again, it is renamed already.
                if let Some(container) = world.containers.remove(from) {
                    world.containers.insert(to.clone(), container);
                }
            }
            Step::Update(name) => {
                world.containers.get_mut(name).context("no container to update")?.restarts = true;
            }
            Step::Volume(name) => drop(world.volumes.insert(name.clone())),
            Step::DeleteVolume(name) => drop(world.volumes.remove(name)),
            Step::Ready | Step::Wait(_) | Step::Layer(_) | Step::Repair => {}
        }
        Ok(world)
    }

    /// Every world that this step, cut anywhere, may leave.
    fn around(&self, step: &Step) -> Result<BTreeSet<Self>> {
        let mut worlds = BTreeSet::from([self.clone(), self.after(step)?]);
        if let Step::Mount { volume, .. } = step {
            // Its volume is a promise of its own, and comes first.
            worlds.insert(self.after(&Step::Volume(volume.clone()))?);
        }
        if *step == Step::Prune {
            for id in self.unused() {
                for mut world in worlds.clone() {
                    world.drop_image(&id);
                    worlds.insert(world);
                }
            }
        }
        Ok(worlds)
    }

    /// Whether a container is to run.
    pub(super) fn runs(&self) -> bool {
        self.containers.values().any(|container| container.phase == Phase::Runs)
    }

    /// Every world that steps under way at one time may leave, in any order.
    pub(super) fn around_all(&self, steps: &[Step]) -> Result<BTreeSet<Self>> {
        let mut worlds = BTreeSet::from([self.clone()]);
        for step in steps {
            let mut next = BTreeSet::new();
            for world in &worlds {
                next.extend(world.around(step)?);
            }
            worlds = next;
        }
        Ok(worlds)
    }

    fn unused(&self) -> Vec<String> {
        let used: BTreeSet<&String> = self.containers.values().map(|container| &container.image).collect();
        self.images.iter().filter(|id| !used.contains(id)).cloned().collect()
    }

    fn drop_image(&mut self, id: &str) {
        self.images.remove(id);
        self.tags.retain(|_, other| other != id);
    }

    /// What this world has otherwise than `other`, in words.
    pub(super) fn differences(&self, other: &Self) -> String {
        let mut found = Vec::new();
        for name in self.tags.keys().chain(other.tags.keys()).collect::<BTreeSet<_>>() {
            if self.tags.get(name) != other.tags.get(name) {
                found.push(format!("tag {name} is {:?} and not {:?}", self.tags.get(name), other.tags.get(name)));
            }
        }
        for id in self.images.symmetric_difference(&other.images) {
            let is = if self.images.contains(id) { "there" } else { "gone" };
            found.push(format!("image {id} is {is}"));
        }
        for name in self.containers.keys().chain(other.containers.keys()).collect::<BTreeSet<_>>() {
            let (ours, theirs) = (self.containers.get(name), other.containers.get(name));
            if ours != theirs {
                found.push(format!("container {name} is {ours:?} and not {theirs:?}"));
            }
        }
        for name in self.volumes.symmetric_difference(&other.volumes) {
            let is = if self.volumes.contains(name) { "there" } else { "gone" };
            found.push(format!("volume {name} is {is}"));
        }
        found.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_read_back_from_its_text() -> Result<()> {
        let steps = [
            Step::Ready,
            Step::Pull("a:1".to_owned()),
            Step::Tag { from: "a:1".to_owned(), to: "x:1".to_owned() },
            Step::Untag("x:1".to_owned()),
            Step::Remove("a:1".to_owned()),
            Step::Prune,
            Step::Create { name: "c".to_owned(), image: "busy:1".to_owned(), program: Program::Writes },
            Step::Create { name: "d".to_owned(), image: "busy:1".to_owned(), program: Program::Stays },
            Step::Create { name: "e".to_owned(), image: "busy:1".to_owned(), program: Program::Restarts },
            Step::Load("a:1".to_owned()),
            Step::Mount { name: "c".to_owned(), image: "a:1".to_owned(), volume: "v".to_owned() },
            Step::Repair,
            Step::Start("c".to_owned()),
            Step::Wait("c".to_owned()),
            Step::Stop("c".to_owned()),
            Step::Delete("c".to_owned()),
            Step::Rename { from: "c".to_owned(), to: "d".to_owned() },
            Step::Update("d".to_owned()),
            Step::Volume("v".to_owned()),
            Step::DeleteVolume("v".to_owned()),
            Step::Layer("0123456789ab".to_owned()),
        ];
        for step in steps {
            assert_eq!(step.to_string().parse::<Step>()?, step);
        }
        assert!("pull".parse::<Step>().is_err());
        Ok(())
    }

    #[test]
    fn a_cut_prune_may_leave_any_image_and_a_cut_pull_its_image_or_not() -> Result<()> {
        let mut world = World::default();
        for id in ["one", "two"] {
            world.images.insert(id.to_owned());
            world.tags.insert(format!("{id}:1"), id.to_owned());
        }
        assert_eq!(world.around_all(&[Step::Prune])?.len(), 4);
        assert_eq!(world.around_all(&[Step::Untag("one:1".to_owned()), Step::Volume("v".to_owned())])?.len(), 4);
        let removed = world.after(&Step::Untag("one:1".to_owned()))?;
        assert_eq!(removed.images.len(), 1);
        assert!(removed.differences(&world).contains("image one is gone"));
        Ok(())
    }
}
