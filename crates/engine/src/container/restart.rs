//! Restart policies: whether a container runs again after its end, and when.
//!
//! P1  A restart writes nothing to the disk: that it should run is recorded already, and how often it was started again is not kept.
//! P2  A stop, a kill or a removal by a user ends a wait for the next run.
//! P3  Waits grow: 100 ms, doubled each time, at most a minute; a run of ten seconds or more sets them back.

use std::sync::Arc;
use std::time::Duration;

use baleen_store::Desired;

use super::host_config::RestartPolicy;
use super::run::Cause;
use super::table::{Container, Wake};
use super::view::ContainerStatus;
use crate::engine::Engine;
use crate::error::EngineError;

const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// A run as long as this counts as a good one.
const RUN_GOOD: Duration = Duration::from_secs(10);

/// What the policy of a container remembers between its runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Restarts {
    /// Runs that the policy has begun since a user last started it.
    pub(crate) count: u64,
    /// The last wait.
    wait: Duration,
    /// A user has ended it: no policy but a boot with `always` starts it again.
    pub(crate) by_user: bool,
    /// Counts the waits, so that one that was ended does not start a later run.
    wait_number: u64,
}

/// What happens after a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It runs again after this time.
    Again(Duration),
    /// It stays as it is.
    Stays,
    /// It has done what it should: a boot does not start it either.
    Done,
}

impl Restarts {
    /// A user, or an engine that opens, starts it: counts and waits begin anew.
    pub(crate) fn begin(&mut self) {
        *self = Self { wait_number: self.wait_number, ..Self::default() };
    }

    /// Whether this cause is the end of the wait that is under way.
    pub(crate) fn is_waiting(&self, cause: Cause) -> bool {
        cause == Cause::Policy(self.wait_number)
    }

    /// Decides after a run that lasted so long and ended with this code.
    pub(crate) fn after_run(&mut self, policy: &RestartPolicy, exit_code: i32, lasted: Duration) -> Next {
        if self.by_user {
            return Next::Stays;
        }
        let tries_max = u64::try_from(policy.maximum_retry_count).unwrap_or(0);
        match policy.name.as_str() {
            "always" | "unless-stopped" => {}
            "on-failure" if exit_code == 0 => return Next::Done,
            "on-failure" if tries_max > 0 && self.count >= tries_max => return Next::Done,
            "on-failure" => {}
            _ => return Next::Stays,
        }
        self.wait = if lasted >= RUN_GOOD { WAIT_MIN } else { (self.wait * 2).clamp(WAIT_MIN, WAIT_MAX) };
        self.count += 1;
        Next::Again(self.wait)
    }
}

/// Whether an engine that opens starts a container that does not run.
pub(crate) fn starts_at_boot(policy: &RestartPolicy, desired: Desired, exit_code: i32) -> bool {
    match (policy.name.as_str(), desired) {
        ("always", Desired::Running | Desired::Stopped) | ("unless-stopped", Desired::Running) => true,
        ("on-failure", Desired::Running) => exit_code != 0,
        _ => false,
    }
}

/// Refuses a policy that does not exist, in Docker's words.
///
/// # Errors
/// `InvalidParameter`.
pub(crate) fn check(policy: &RestartPolicy) -> Result<(), EngineError> {
    let refuse = |text: String| Err(EngineError::invalid(text));
    match policy.name.as_str() {
        "always" | "unless-stopped" | "no" if policy.maximum_retry_count > 0 => {
            refuse("invalid restart policy: maximum retry count can only be used with 'on-failure'".to_owned())
        }
        _ if policy.maximum_retry_count < 0 => {
            refuse("invalid restart policy: maximum retry count cannot be negative".to_owned())
        }
        "" | "no" | "always" | "unless-stopped" | "on-failure" => Ok(()),
        name => refuse(format!(
            "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )),
    }
}

impl Engine {
    /// After the end of a run, with the container's turn held: `true` if it waits for its next run.
    pub(crate) fn plan_restart(self: &Arc<Self>, container: &Arc<Container>, lasted: Duration) -> bool {
        let stored = container.stored();
        let (next, number) = {
            let mut live = container.live();
            if live.is_removing || self.is_ending() {
                return false;
            }
            let exit_code = live.state.exit_code;
            let next = live.restarts.after_run(&stored.host_config.restart_policy, exit_code, lasted);
            if let Next::Again(_) = next {
                live.state.status = ContainerStatus::Restarting;
                live.restarts.wait_number += 1;
            }
            (next, live.restarts.wait_number)
        };
        let wait = match next {
            Next::Again(wait) => wait,
            Next::Stays => return false,
            Next::Done => {
                let (engine, container) = (Arc::clone(self), Arc::clone(container));
                drop(tokio::spawn(async move {
                    if let Err(error) = engine.record_stopped(&container).await {
                        let error = error.chain();
                        tracing::warn!(container = container.id(), error, "that a container is done is not recorded");
                    }
                }));
                return false;
            }
        };
        let (engine, container) = (Arc::clone(self), Arc::clone(container));
        drop(tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            engine.run_again(&container, number).await;
        }));
        true
    }

    /// The next run of a container, unless its wait has been ended (P2).
    async fn run_again(self: &Arc<Self>, container: &Arc<Container>, number: u64) {
        let waits = {
            let live = container.live();
            live.state.status == ContainerStatus::Restarting && live.restarts.wait_number == number
        };
        if !waits || self.is_ending() {
            return;
        }
        let started = self.start_as(container, Cause::Policy(number)).await;
        if let Err(error) = started
            && !matches!(error, EngineError::AlreadyStarted)
        {
            tracing::warn!(container = container.id(), error = error.chain(), "a restart has failed");
            let mut live = container.live();
            if live.state.status == ContainerStatus::Restarting && live.restarts.wait_number == number {
                live.state.status = ContainerStatus::Exited;
                drop(live);
                container.wake(Wake::Stopped);
            }
        }
    }

    /// Ends a wait for the next run; `true` if there was one.
    pub(crate) fn end_wait(&self, container: &Container) -> bool {
        let mut live = container.live();
        live.restarts.by_user = true;
        if live.state.status != ContainerStatus::Restarting {
            return false;
        }
        live.restarts.wait_number += 1;
        live.state.status = ContainerStatus::Exited;
        drop(live);
        container.wake(Wake::Stopped);
        true
    }

    /// Starts in the background what a policy wants to run when an engine opens. Until then it waits like between two runs, so that a stop
    /// or a removal ends that (P2).
    pub(crate) fn start_at_boot(self: &Arc<Self>, container: &Arc<Container>) {
        let number = {
            let stored = container.stored();
            let mut live = container.live();
            if !starts_at_boot(&stored.host_config.restart_policy, live.desired, live.state.exit_code) {
                return;
            }
            live.state.status = ContainerStatus::Restarting;
            live.restarts.wait_number += 1;
            live.restarts.wait_number
        };
        let (engine, container) = (Arc::clone(self), Arc::clone(container));
        drop(tokio::spawn(async move { engine.run_again(&container, number).await }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, maximum_retry_count: i64) -> RestartPolicy {
        RestartPolicy { name: name.to_owned(), maximum_retry_count }
    }

    #[test]
    fn waits_double_up_to_a_minute_and_a_good_run_sets_them_back() {
        let mut restarts = Restarts::default();
        let mut waits = |lasted: u64| match restarts.after_run(&policy("always", 0), 0, Duration::from_secs(lasted)) {
            Next::Again(wait) => wait.as_millis(),
            other => panic!("{other:?}"),
        };
        let seen: Vec<u128> = (0..12).map(|_| waits(1)).collect();
        assert_eq!(seen, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]);
        assert_eq!((waits(10), waits(0)), (100, 200));
    }

    #[test]
    fn each_policy_starts_again_what_it_says() {
        let after = |name: &str, tries: i64, code: i32, count: u64, by_user: bool| {
            let mut restarts = Restarts { count, by_user, ..Restarts::default() };
            restarts.after_run(&policy(name, tries), code, Duration::ZERO)
        };
        let again = Next::Again(WAIT_MIN);
        assert_eq!(after("no", 0, 1, 0, false), Next::Stays);
        assert_eq!(after("always", 0, 0, 5, false), again);
        assert_eq!(after("unless-stopped", 0, 0, 5, false), again);
        assert_eq!(after("on-failure", 0, 1, 50, false), again);
        assert_eq!(after("on-failure", 0, 0, 0, false), Next::Done);
        assert_eq!(after("on-failure", 3, 1, 2, false), again);
        assert_eq!(after("on-failure", 3, 1, 3, false), Next::Done);
        for name in ["always", "unless-stopped", "on-failure"] {
            assert_eq!(after(name, 0, 137, 0, true), Next::Stays, "{name}");
        }
    }

    #[test]
    fn a_boot_starts_what_should_run_and_always_also_what_was_stopped() {
        use Desired::{Created, Running, Stopped};
        let starts = |name: &str, desired| starts_at_boot(&policy(name, 0), desired, 255);
        assert_eq!([Created, Running, Stopped].map(|desired| starts("always", desired)), [false, true, true]);
        assert_eq!([Created, Running, Stopped].map(|desired| starts("unless-stopped", desired)), [false, true, false]);
        assert_eq!([Created, Running, Stopped].map(|desired| starts("on-failure", desired)), [false, true, false]);
        assert!(!starts("no", Running) && !starts_at_boot(&policy("on-failure", 0), Running, 0));
    }

    #[test]
    fn a_policy_that_does_not_exist_is_refused_by_its_name() {
        for (name, tries) in [("sometimes", 0), ("always", 3), ("no", 1), ("on-failure", -1)] {
            assert!(check(&policy(name, tries)).is_err(), "{name}:{tries}");
        }
        for (name, tries) in [("", 0), ("no", 0), ("always", 0), ("unless-stopped", 0), ("on-failure", 7)] {
            assert!(check(&policy(name, tries)).is_ok(), "{name}:{tries}");
        }
    }
}
