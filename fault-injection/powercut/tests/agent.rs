//! Agent and judge against each other, with a process that is killed where a relay would cut the power.

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use baleen_powercut::workload::{History, MarkKind};
use baleen_powercut::{AgentError, Cuts, Round, judge_agent};
use support::{Scratch, chain};

/// An agent that can be killed and started again, as a device is.
struct Device {
    judge: String,
    scratch: std::path::PathBuf,
    workload: &'static str,
    running: Option<Child>,
}

impl Device {
    fn start(judge: String, scratch: &Path, workload: &'static str) -> Device {
        let mut device = Device { judge, scratch: scratch.to_owned(), workload, running: None };
        device.boot();
        device
    }

    fn boot(&mut self) {
        let mut agent = Command::new(env!("CARGO_BIN_EXE_baleen-powercut"));
        agent.args(["agent", "--judge", &self.judge, "--workload", self.workload]);
        agent.arg("--disk").arg(self.scratch.join("disk")).arg("--run").arg(self.scratch.join("run"));
        self.running = Some(agent.spawn().expect("the agent starts"));
    }

    fn kill(&mut self) {
        if let Some(mut agent) = self.running.take() {
            agent.kill().expect("an agent can be killed");
            agent.wait().expect("a killed agent ends");
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(mut agent) = self.running.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// Judges `count` cuts of a workload; before each reboot, `meanwhile` is done to the disk.
fn judged(
    test: &str,
    workload: &'static str,
    count: u32,
    history: &mut History,
    mut meanwhile: impl FnMut(&Path),
) -> Result<Vec<Round>, AgentError> {
    let scratch = Scratch::new(test);
    let disk = scratch.0.join("disk");
    fs::create_dir(&disk).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let judge = listener.local_addr().unwrap().to_string();
    let mut device = Device::start(judge, &scratch.0, workload);
    let cuts =
        Cuts { count, marks_max: 20, later: Duration::from_millis(10), patience: Duration::from_secs(60), seed: 7 };
    let mut cut = || {
        device.kill();
        meanwhile(&disk);
        device.boot();
        Ok(())
    };
    let mut rounds = Vec::new();
    judge_agent(&listener, &cuts, history, &mut cut, &mut |round| rounds.push(round.clone()))?;
    Ok(rounds)
}

#[test]
fn what_was_acknowledged_is_found_after_every_kill_of_the_agent() {
    let mut history = History::default();
    let rounds = judged("agent-found", "toy/careful-create", 6, &mut history, |_| ())
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(rounds.len(), 6);
    assert!(rounds.iter().all(|round| round.broken.is_empty()), "{rounds:?}");
    assert!(rounds.is_sorted_by_key(|round| round.acknowledged) && rounds[5].acknowledged > 6, "{rounds:?}");
    // Each step is reported before and after.
    assert!(history.marks.iter().any(|mark| mark.kind == MarkKind::Begun));
    assert!(history.in_flight().len() <= 6, "{:?}", history.in_flight());
}

#[test]
fn a_loss_between_cut_and_boot_is_convicted() {
    let mut history = History::default();
    let mut lost = 0;
    let lose = |disk: &Path| {
        lost += 1;
        if lost == 2 {
            fs::remove_file(disk.join("kept/step-1")).expect("the first step is there after two cuts");
        }
    };
    let rounds = judged("agent-loss", "toy/careful-create", 3, &mut history, lose)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(rounds[0].broken.is_empty(), "{rounds:?}");
    assert!(rounds[1].broken.iter().any(|broken| broken.promise == "durable"), "{rounds:?}");
}

#[test]
fn a_device_that_does_not_come_back_is_told_in_words() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let cuts = Cuts { count: 1, marks_max: 1, later: Duration::ZERO, patience: Duration::from_millis(50), seed: 1 };
    let mut history = History::default();
    let judged = judge_agent(&listener, &cuts, &mut history, &mut || Ok(()), &mut |_| ());
    assert!(matches!(judged, Err(AgentError::NoAgent { .. })), "{judged:?}");
}
