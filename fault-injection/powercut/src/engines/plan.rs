//! The workloads by name: what is there before, and what is done while it is recorded.

use anyhow::{Result, bail};
use baleen_tests::random::Random;

use super::program::Kind;
use super::step::{Program, Step};

/// A workload.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    /// Done before the recording.
    pub(super) before: Vec<Move>,
    /// Done while it is recorded.
    pub(super) moves: Vec<Move>,
    /// How fast the network is while it is recorded; 0 for no limit.
    pub(super) bytes_per_second: u64,
}

/// What is done at a time.
#[derive(Debug, Clone)]
pub(super) enum Move {
    /// One step.
    Do(Step),
    /// Two steps at once.
    Both(Step, Step),
    /// Begins to pull; once this many bytes of the image's last layer have come, the daemon is killed and started again.
    KilledPull { image: String, after_bytes: u64 },
    /// Pulls; once this many bytes of the image's last layer have come, somebody else syncs the file system and is told of the
    /// write that failed (the disk is to have one), and the pull goes on.
    EatenPull { image: String, after_bytes: u64 },
    /// Damages what is stored of an image in every way that a repair mends.
    Damage(String),
    /// Ends the engine, repairs the store, and starts the engine again.
    Repair,
    /// Tags and untags until the log has been compacted once and is one segment short of the next time.
    FillLog,
    /// Tags and untags until the log has been compacted.
    UntilCompacted,
}

/// Names of an image that has many.
const NAMES: usize = 60;

/// Names of the workloads that can be recorded for both engines; `mixed-SEED` for any number is one more.
const BOTH: [&str; 12] =
    ["create", "pull", "shared", "two", "tag", "remove", "collect", "again", "container", "restart", "many", "real"];
/// Those that are about baleen's own files.
const BALEEN: [&str; 8] = ["compact", "empty", "resume", "volume", "names", "load", "mount", "repair"];

/// The names of an engine's workloads.
pub(super) fn names(kind: Kind) -> Vec<&'static str> {
    let own: &[&str] = if kind == Kind::Baleen { &BALEEN } else { &["volume"] };
    BOTH.iter().chain(own).copied().collect()
}

/// The workload of this name.
pub(super) fn plan(name: &str) -> Result<Plan> {
    let moves =
        |texts: &[&str]| -> Result<Vec<Move>> { texts.iter().map(|text| Ok(Move::Do(text.parse()?))).collect() };
    let killed = |image: &str, after_bytes| Move::KilledPull { image: image.to_owned(), after_bytes };
    let both = |one: &str, two: &str| -> Result<Move> { Ok(Move::Both(one.parse()?, two.parse()?)) };
    let mut plan = Plan::default();
    match name {
        "create" => plan.moves = moves(&["ready", "pull tiny:1"])?,
        "pull" => plan.moves = moves(&["pull a:2"])?,
        "shared" => {
            plan.before = moves(&["pull a:1"])?;
            plan.moves = moves(&["pull a:2", "pull b:1"])?;
        }
        "two" => plan.moves = vec![both("pull a:2", "pull b:1")?],
        "again" => {
            plan.before = moves(&["pull tiny:1"])?;
            plan.moves = vec![killed("a:2", 2_000), killed("a:2", 3_000)];
            plan.moves.extend(moves(&["pull a:2", "pull a:2"])?);
        }
        // The first attempt is cut before any checkpoint is due, and each one from there on takes them often.
        "resume" => {
            plan.bytes_per_second = 2 << 20;
            plan.moves = vec![killed("small:1", 100_000), killed("small:1", 1_500_000), killed("small:1", 2_800_000)];
            plan.moves.extend(moves(&["pull small:1"])?);
        }
        // Wants a disk with a write that fails: not among the names.
        "eaten" => {
            plan.moves = vec![Move::EatenPull { image: "large:1".to_owned(), after_bytes: 2_000_000 }];
        }
        "tag" => {
            plan.before = moves(&["pull a:1", "pull b:1"])?;
            plan.moves = moves(&["tag a:1 x:1", "tag b:1 x:1", "rmi x:1", "tag a:1 y:1", "rmi a:1", "tag y:1 a:1"])?;
        }
        "remove" => {
            plan.before = moves(&["pull a:1", "pull a:2", "pull b:1"])?;
            plan.moves = moves(&["rmi a:2", "rmi b:1", "pull b:1", "rmi a:1", "rmi b:1"])?;
        }
        "collect" => {
            plan.before = moves(&["pull a:1", "pull b:1"])?;
            plan.before.push(killed("a:2", 2_000));
            plan.moves = moves(&["prune", "pull a:1"])?;
            plan.moves.push(killed("a:2", 2_000));
            plan.moves.extend(moves(&["prune", "pull b:1"])?);
        }
        "container" => {
            plan.before = moves(&["pull busy:1"])?;
            plan.moves = moves(&[
                "create c1 busy:1 writes",
                "start c1",
                "wait c1",
                "rename c1 c3",
                // Never started, so that a boot has nothing to start.
                "create c4 busy:1 stays",
                "update c4",
                "rename c4 c5",
                "create c2 busy:1 stays",
                "start c2",
                "stop c2",
                "rm c3",
                "rm c5",
                "rm c2",
            ])?;
        }
        "restart" => {
            plan.before = moves(&["pull busy:1"])?;
            plan.moves = moves(&["create r1 busy:1 restarts", "start r1", "stop r1", "start r1"])?;
        }
        "volume" => plan.moves = moves(&["ready", "volume v1", "volume v2", "volume-rm v1", "volume v1"])?,
        // Its removal is one record of the log, longer than two blocks.
        "names" => {
            plan.before = moves(&["pull a:1", "pull b:1"])?;
            let long = "x".repeat(120);
            plan.before.extend(
                (0..NAMES)
                    .map(|number| Move::Do(Step::Tag { from: "a:1".to_owned(), to: format!("x:{long}{number}") })),
            );
            plan.moves = moves(&["rmi-all a:1", "pull a:1"])?;
        }
        "load" => {
            plan.before = moves(&["pull b:1"])?;
            plan.moves = moves(&["load a:2", "load a:1", "rmi a:2"])?;
        }
        "mount" => {
            plan.before = moves(&["pull a:1"])?;
            plan.moves = moves(&["mount c1 a:1 v1", "mount c2 a:1 v2", "rm c1", "volume-rm v1"])?;
        }
        "repair" => {
            plan.before = moves(&["pull a:2", "pull b:1"])?;
            plan.before.push(Move::Damage("a:2".to_owned()));
            plan.moves = vec![Move::Repair];
        }
        "many" => plan.moves = moves(&["pull many:1", "rmi many:1"])?,
        "real" => plan.moves = moves(&["pull real:1"])?,
        "empty" => {
            plan.before = moves(&["pull a:1"])?;
            plan.moves = moves(&["rmi a:1", "pull b:1", "rmi b:1"])?;
        }
        "compact" => {
            plan.before = moves(&["pull a:1"])?;
            plan.before.push(Move::FillLog);
            plan.moves = vec![Move::UntilCompacted];
            plan.moves.extend(moves(&["tag a:1 z:1"])?);
        }
        other => match other.strip_prefix("mixed-").and_then(|seed| seed.parse().ok()) {
            Some(seed) => plan = mixed(seed)?,
            None => bail!("no workload is called {other}"),
        },
    }
    Ok(plan)
}

/// Twelve steps that are all possible when they come, chosen by `seed`.
fn mixed(seed: u64) -> Result<Plan> {
    const IMAGES: [&str; 4] = ["a:1", "a:2", "b:1", "tiny:1"];
    let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9).wrapping_add(1));
    let mut tags: Vec<String> = vec!["busy:1".to_owned()];
    // Name, and whether it has been started.
    let mut containers: Vec<(String, bool)> = Vec::new();
    let mut steps = Vec::new();
    let mut made = 0;
    while steps.len() < 12 {
        let removable: Vec<String> = tags.iter().filter(|tag| *tag != "busy:1").cloned().collect();
        let some = |random: &mut Random, from: &[String]| from[random.below(from.len() as u64) as usize].clone();
        match random.below(9) {
            0..=2 => {
                let image = IMAGES[random.below(4) as usize].to_owned();
                if !tags.contains(&image) {
                    tags.push(image.clone());
                }
                steps.push(Step::Pull(image));
            }
            3 => {
                let (from, to) = (some(&mut random, &tags), format!("x:{}", random.below(3)));
                // A name that moves away from an image's last one would leave it without any.
                if !tags.contains(&to) {
                    tags.push(to.clone());
                    steps.push(Step::Tag { from, to });
                }
            }
            4 if !removable.is_empty() => {
                let name = some(&mut random, &removable);
                tags.retain(|tag| *tag != name);
                steps.push(Step::Untag(name));
            }
            5 if containers.is_empty() && random.below(2) == 0 => {
                tags = vec!["busy:1".to_owned()];
                steps.push(Step::Prune);
                // It takes the image as well, since nothing uses it.
                steps.push(Step::Pull("busy:1".to_owned()));
            }
            6 => {
                made += 1;
                let name = format!("c{made}");
                containers.push((name.clone(), false));
                let program = if random.below(2) == 0 { Program::Writes } else { Program::Stays };
                steps.push(Step::Create { name, image: "busy:1".to_owned(), program });
            }
            7 if !containers.is_empty() => {
                let at = random.below(containers.len() as u64) as usize;
                let (name, started) = containers[at].clone();
                if started {
                    steps.push(Step::Stop(name.clone()));
                    steps.push(Step::Delete(name));
                    containers.remove(at);
                } else {
                    steps.push(Step::Start(name));
                    containers[at].1 = true;
                }
            }
            _ => {}
        }
    }
    let before = vec![Move::Do(Step::Pull("busy:1".to_owned()))];
    Ok(Plan { before, moves: steps.into_iter().map(Move::Do).collect(), bytes_per_second: 0 })
}

impl Plan {
    /// Whether what is stored is damaged until a repair has mended it.
    pub(super) fn repairs(&self) -> bool {
        self.moves.iter().any(|one| matches!(one, Move::Repair))
    }

    /// Every image that it pulls.
    pub(super) fn images(&self) -> Vec<String> {
        let mut images = Vec::new();
        for one in self.before.iter().chain(&self.moves) {
            let steps: &[&Step] = match one {
                Move::Do(step) => &[step],
                Move::Both(one, two) => &[one, two],
                Move::KilledPull { image, .. } | Move::EatenPull { image, .. } => {
                    images.push(image.clone());
                    &[]
                }
                Move::FillLog | Move::UntilCompacted | Move::Damage(_) | Move::Repair => &[],
            };
            images.extend(steps.iter().filter_map(|step| match step {
                Step::Pull(image) | Step::Load(image) => Some(image.clone()),
                _ => None,
            }));
        }
        images.sort();
        images.dedup();
        images
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::step::World;

    #[test]
    fn every_workload_has_a_plan_and_a_mixed_one_repeats() -> Result<()> {
        for name in names(Kind::Baleen).into_iter().chain(names(Kind::Docker)) {
            assert!(!plan(name)?.moves.is_empty(), "{name}");
        }
        assert_eq!(format!("{:?}", plan("mixed-7")?), format!("{:?}", plan("mixed-7")?));
        assert_ne!(format!("{:?}", plan("mixed-7")?), format!("{:?}", plan("mixed-8")?));
        assert!(plan("mixed-x").is_err());
        Ok(())
    }

    #[test]
    fn a_mixed_workload_asks_only_for_what_is_possible() -> Result<()> {
        baleen_tests::needs_root!("a_mixed_workload_asks_only_for_what_is_possible");
        for seed in 0..200 {
            let plan = plan(&format!("mixed-{seed}"))?;
            let mut world = World::default();
            for one in plan.before.iter().chain(&plan.moves) {
                let Move::Do(step) = one else { continue };
                match step {
                    Step::Tag { from, .. } => assert!(world.tags.contains_key(from), "{seed}: {step}"),
                    Step::Untag(name) => assert!(world.tags.contains_key(name), "{seed}: {step}"),
                    Step::Create { image, .. } => assert!(world.tags.contains_key(image), "{seed}: {step}"),
                    Step::Start(name) | Step::Delete(name) => {
                        assert!(world.containers.contains_key(name), "{seed}: {step}");
                    }
                    _ => {}
                }
                world = world.after(step)?;
            }
        }
        Ok(())
    }
}
