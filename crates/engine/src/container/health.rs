//! Health: a program that is executed in a running container again and again, and what its exit codes say.
//!
//! L1  A probe is an exec: same namespaces, same limits, set up outside the container's memory. It writes nothing to the disk.
//! L2  A probe that could not be executed says nothing about the container: it is told, and changes neither streak nor status.
//! L3  A container without a process to probe (paused, between two runs) is not probed; the end of a run ends its probes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::config::{ContainerConfig, HealthConfig};
use super::exec::{ExecRequest, Probed};
use super::table::Container;
use super::view::ContainerStatus;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::time::Timestamp;

/// Probes that are remembered.
const PROBES_MAX: usize = 5;
const INTERVAL_DEFAULT: Duration = Duration::from_secs(30);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const START_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
const RETRIES_DEFAULT: u64 = 3;
/// The shortest time that a field may name, in nanoseconds.
const NANOSECONDS_MIN: i64 = 1_000_000;
/// What is shown as the exit code of a probe that did not end by itself.
const EXIT_NONE: i32 = -1;

/// What is known of a container's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The verdict.
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u64,
    /// The last probes, oldest first.
    pub log: VecDeque<HealthProbe>,
}

/// Docker's words for a container's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HealthStatus {
    /// No verdict yet.
    Starting,
    /// The last probe said so, and none has said otherwise often enough since.
    Healthy,
    /// So many probes in a row have failed.
    Unhealthy,
}

impl HealthStatus {
    /// The API's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthProbe {
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// Of its program; -1 if that did not end by itself.
    pub exit_code: i32,
    /// What it wrote, at most 4 KiB; or why there is nothing.
    pub output: String,
}

/// When and how a container is probed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    command: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u64,
}

impl Plan {
    /// The plan of a configuration; `None` if it names no probe.
    fn of(config: &ContainerConfig) -> Option<Self> {
        let probe = config.healthcheck.as_ref()?;
        let (kind, words) = probe.test.split_first()?;
        let command = match kind.as_str() {
            "CMD" => words.to_vec(),
            "CMD-SHELL" => {
                let usual = || vec!["/bin/sh".to_owned(), "-c".to_owned()];
                let mut shell = config.shell.clone().filter(|shell| !shell.is_empty()).unwrap_or_else(usual);
                shell.extend(words.iter().cloned());
                shell
            }
            _ => return None,
        };
        let time = |nanoseconds: i64, default: Duration| match u64::try_from(nanoseconds) {
            Ok(nanoseconds) if nanoseconds > 0 => Duration::from_nanos(nanoseconds),
            _ => default,
        };
        Some(Self {
            command,
            interval: time(probe.interval, INTERVAL_DEFAULT),
            timeout: time(probe.timeout, TIMEOUT_DEFAULT),
            start_period: time(probe.start_period, Duration::ZERO),
            start_interval: time(probe.start_interval, START_INTERVAL_DEFAULT),
            retries: u64::try_from(probe.retries).ok().filter(|&retries| retries > 0).unwrap_or(RETRIES_DEFAULT),
        })
        .filter(|plan| !plan.command.is_empty())
    }

    /// How long until the next probe.
    fn wait(&self, health: &Health, runs_for: Duration) -> Duration {
        let starts = health.status == HealthStatus::Starting && runs_for < self.start_period;
        if starts { self.start_interval.min(self.interval) } else { self.interval }
    }

    /// Applies what a probe has said; `true` if the verdict has changed.
    fn apply(&self, health: &mut Health, probe: HealthProbe, verdict: Option<bool>, runs_for: Duration) -> bool {
        let before = health.status;
        match verdict {
            Some(true) => {
                health.failing_streak = 0;
                health.status = HealthStatus::Healthy;
            }
            Some(false) if before == HealthStatus::Starting && runs_for < self.start_period => {}
            Some(false) => {
                health.failing_streak += 1;
                if health.failing_streak >= self.retries {
                    health.status = HealthStatus::Unhealthy;
                }
            }
            None => {}
        }
        while health.log.len() >= PROBES_MAX {
            health.log.pop_front();
        }
        health.log.push_back(probe);
        health.status != before
    }
}

/// Refuses numbers that cannot be, in Docker's words.
///
/// # Errors
/// `InvalidParameter`.
pub(crate) fn check(probe: &HealthConfig) -> Result<(), EngineError> {
    let times = [
        ("Interval", probe.interval),
        ("Timeout", probe.timeout),
        ("StartPeriod", probe.start_period),
        ("StartInterval", probe.start_interval),
    ];
    for (name, nanoseconds) in times {
        if nanoseconds != 0 && nanoseconds < NANOSECONDS_MIN {
            return Err(EngineError::invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
        }
    }
    if probe.retries < 0 {
        return Err(EngineError::invalid("Retries in Healthcheck cannot be negative"));
    }
    Ok(())
}

impl Engine {
    /// Begins to probe a container whose run has begun or was found; does nothing for one without a probe.
    pub(crate) fn begin_probes(self: &Arc<Self>, container: &Arc<Container>) {
        let Some(plan) = Plan::of(&container.stored().config) else { return };
        let (stop, stopped) = oneshot::channel();
        {
            let mut live = container.live();
            live.probing = Some(stop);
            live.health = Some(Health {
                status: HealthStatus::Starting,
                failing_streak: 0,
                log: VecDeque::with_capacity(PROBES_MAX),
            });
        }
        let (engine, container) = (Arc::clone(self), Arc::clone(container));
        drop(tokio::spawn(async move {
            tokio::select! {
                () = engine.probe_on(&container, &plan) => {}
                // Told, or dropped: the run has ended (L3).
                _ = stopped => {}
            }
        }));
    }

    async fn probe_on(self: &Arc<Self>, container: &Arc<Container>, plan: &Plan) {
        let begun = Instant::now();
        loop {
            let wait =
                container.live().health.as_ref().map_or(plan.interval, |health| plan.wait(health, begun.elapsed()));
            tokio::time::sleep(wait).await;
            if container.live().state.status == ContainerStatus::Running && !self.is_ending() {
                self.probe_once(container, plan, begun).await;
            }
        }
    }

    async fn probe_once(self: &Arc<Self>, container: &Arc<Container>, plan: &Plan, begun: Instant) {
        let request = ExecRequest {
            command: plan.command.clone(),
            attach_stdout: true,
            attach_stderr: true,
            ..ExecRequest::default()
        };
        let start = Timestamp::now();
        let probed = self.probe(container, request, plan.timeout).await;
        let (exit_code, output, verdict) = match probed {
            Ok(Probed::Ended { exit_code, output }) => (exit_code, output, Some(exit_code == 0)),
            Ok(Probed::TimedOut { output }) => {
                let text = format!("Health check exceeded timeout ({})", seconds(plan.timeout));
                (EXIT_NONE, if output.is_empty() { text } else { format!("{text}: {output}") }, Some(false))
            }
            // The program itself is missing: that is the container's own fault, as in Docker.
            Err(EngineError::StartFailed { exit_code: 127, text, .. }) => (127, text, Some(false)),
            Err(error) => (EXIT_NONE, format!("could not probe: {}", error.chain()), None),
        };
        let probe = HealthProbe { start, end: Timestamp::now(), exit_code, output };
        let changed = {
            let mut live = container.live();
            if live.state.status != ContainerStatus::Running {
                // Its end has killed the probe.
                return;
            }
            let Some(health) = live.health.as_mut() else { return };
            plan.apply(health, probe, verdict, begun.elapsed()).then_some(health.status)
        };
        if let Some(status) = changed {
            self.container_event(container, &format!("health_status: {}", status.as_str()), &[]);
        }
    }
}

/// A time as Docker prints it: `30s`, `1m30s`, `250ms`.
fn seconds(time: Duration) -> String {
    match (time.as_secs(), time.subsec_millis()) {
        (0, milliseconds) => format!("{milliseconds}ms"),
        (seconds, 0) if seconds >= 60 => format!("{}m{}s", seconds / 60, seconds % 60),
        (seconds, 0) => format!("{seconds}s"),
        (seconds, milliseconds) => format!("{seconds}.{milliseconds:03}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(test: &[&str]) -> ContainerConfig {
        let test = test.iter().map(|&word| word.to_owned()).collect();
        let healthcheck = HealthConfig { test, start_period: 10_000_000_000, retries: 2, ..HealthConfig::default() };
        ContainerConfig { healthcheck: Some(healthcheck), ..ContainerConfig::default() }
    }

    #[test]
    fn a_probe_is_a_command_or_a_line_for_the_shell() {
        let command = |test: &[&str]| Plan::of(&config(test)).map(|plan| plan.command);
        assert_eq!(command(&["CMD", "true", "x"]).unwrap(), ["true", "x"]);
        assert_eq!(command(&["CMD-SHELL", "a | b"]).unwrap(), ["/bin/sh", "-c", "a | b"]);
        for none in [&["NONE"][..], &[], &["CMD"], &["what", "else"]] {
            assert_eq!(command(none), None);
        }
    }

    #[test]
    fn failures_count_after_the_start_period_and_one_success_takes_them_back() {
        let plan = Plan::of(&config(&["CMD", "true"])).unwrap();
        let mut health = Health { status: HealthStatus::Starting, failing_streak: 0, log: VecDeque::new() };
        let probe =
            || HealthProbe { start: Timestamp::ZERO, end: Timestamp::ZERO, exit_code: 1, output: String::new() };
        let (early, late) = (Duration::from_secs(3), Duration::from_secs(20));
        assert!(!plan.apply(&mut health, probe(), Some(false), early));
        assert_eq!((health.failing_streak, plan.wait(&health, early)), (0, START_INTERVAL_DEFAULT));
        assert!(!plan.apply(&mut health, probe(), Some(false), late));
        // What could not be probed says nothing.
        assert!(!plan.apply(&mut health, probe(), None, late));
        assert!(plan.apply(&mut health, probe(), Some(false), late));
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Unhealthy, 2));
        assert!(plan.apply(&mut health, probe(), Some(true), late));
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Healthy, 0));
        for _ in 0..9 {
            plan.apply(&mut health, probe(), Some(true), late);
        }
        assert_eq!(health.log.len(), PROBES_MAX);
    }

    #[test]
    fn times_are_printed_as_docker_prints_them() {
        let text = |milliseconds: u64| seconds(Duration::from_millis(milliseconds));
        assert_eq!([250, 1000, 30_000, 90_000, 1500].map(text), ["250ms", "1s", "30s", "1m30s", "1.500s"]);
    }
}
