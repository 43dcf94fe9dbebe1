//! An engine on a scratch root that cleans up after itself, and the small things that tests ask of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_engine::{
    ContainerConfig, CreateRequest, Engine, EngineConfig, EngineError, LogsRequest, OutputStream, Progress,
    PullRequest, Pulled, RegistryAuth, RemoveContainer, WaitCondition, progress_channel,
};
use baleen_tests::scratch::{Scratch, unmount_below};
use tokio::runtime::Runtime;

/// Longest that anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A scratch root with an engine that can be dropped and opened again.
pub(crate) struct Fixture {
    engine: Option<Arc<Engine>>,
    pub(crate) runtime: Runtime,
    pub(crate) scratch: Scratch,
    tune: fn(&mut EngineConfig),
}

impl Fixture {
    pub(crate) fn new(label: &str) -> Result<Self> {
        Self::tuned(label, |_| {})
    }

    /// One whose settings differ from the defaults.
    pub(crate) fn tuned(label: &str, tune: fn(&mut EngineConfig)) -> Result<Self> {
        let scratch = Scratch::new(label)?;
        let mut fixture = Self { engine: None, runtime: new_runtime()?, scratch, tune };
        fixture.open()?;
        Ok(fixture)
    }

    /// What an engine here is opened with.
    pub(crate) fn config(&self) -> Result<EngineConfig> {
        let program = std::env::current_exe()?;
        let mut config = EngineConfig::at(self.scratch.join("data"), self.scratch.join("run"), program);
        (self.tune)(&mut config);
        Ok(config)
    }

    pub(crate) fn open(&mut self) -> Result<()> {
        let config = self.config()?;
        self.engine = Some(self.runtime.block_on(Engine::open(config))?);
        Ok(())
    }

    /// Ends the engine as a SIGKILL would for its tasks: nothing is told to stop. A new runtime takes their place.
    pub(crate) fn abandon(&mut self) -> Result<()> {
        let old = std::mem::replace(&mut self.runtime, new_runtime()?);
        let weak = self.engine.take().map(|engine| Arc::downgrade(&engine));
        old.shutdown_timeout(LIMIT);
        anyhow::ensure!(weak.is_none_or(|weak| weak.strong_count() == 0), "somebody still holds the engine");
        Ok(())
    }

    pub(crate) fn engine(&self) -> Arc<Engine> {
        Arc::clone(self.engine.as_ref().expect("the engine is open"))
    }

    /// Runs a verb, with a limit.
    pub(crate) fn run<T>(&self, verb: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
        self.runtime.block_on(async { tokio::time::timeout(LIMIT, verb).await.expect("a verb took too long") })
    }

    /// Pulls anonymously; gives the outcome and everything that was told.
    pub(crate) fn pull(&self, reference: &str) -> (Result<Pulled, EngineError>, Vec<Progress>) {
        let engine = self.engine();
        let request = pull_request(reference);
        self.runtime.block_on(async {
            let (sender, mut told) = progress_channel();
            let pulling = tokio::spawn(async move { engine.pull(request, sender).await });
            let mut all = Vec::new();
            while let Some(progress) = told.recv().await {
                all.push(progress);
            }
            (pulling.await.expect("the pull panicked"), all)
        })
    }

    /// Creates and starts a container without network; gives its ID.
    pub(crate) fn start(&self, image: &str, command: &[&str]) -> Result<String> {
        let engine = self.engine();
        let created = self.run(engine.create_container(request(image, command)))?;
        self.run(engine.start_container(&created.id))?;
        Ok(created.id)
    }

    /// Waits for the end of a container.
    pub(crate) fn exit_code(&self, name: &str) -> Result<i32> {
        let engine = self.engine();
        let exit = self.run(async {
            let wait = engine.wait_container(name, WaitCondition::NotRunning).await?;
            wait.finished().await
        })?;
        Ok(exit.code)
    }

    /// What a container has written so far.
    pub(crate) fn output(&self, name: &str, stream: OutputStream, follow: bool) -> Result<String> {
        let engine = self.engine();
        let request = LogsRequest {
            stdout: stream == OutputStream::Stdout,
            stderr: stream == OutputStream::Stderr,
            follow,
            ..LogsRequest::default()
        };
        let text = self.run(async {
            let mut logs = engine.container_logs(name, request).await?;
            let mut text = Vec::new();
            while let Some(line) = logs.next().await {
                text.extend_from_slice(&line?.bytes);
            }
            Ok(text)
        })?;
        String::from_utf8(text).context("the output is not text")
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Also after a failure nothing may stay: no process, no mount.
        if let Some(engine) = self.engine.take() {
            let remove_all = async {
                for container in engine.containers(false).await.unwrap_or_default() {
                    let force = RemoveContainer { force: true, volumes: true };
                    if let Err(error) = engine.remove_container(&container.id, force).await {
                        eprintln!("cannot remove {}: {}", container.id, error.chain());
                    }
                }
            };
            if self.runtime.block_on(async { tokio::time::timeout(LIMIT, remove_all).await }).is_err() {
                eprintln!("the containers could not be removed in time");
            }
        }
        unmount_below(self.scratch.path());
    }
}

fn new_runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

pub(crate) fn pull_request(reference: &str) -> PullRequest {
    PullRequest {
        reference: baleen_oci::Reference::parse(reference).expect("a test's reference"),
        platform: None,
        auth: RegistryAuth::anonymous(),
    }
}

/// A container without network.
pub(crate) fn request(image: &str, command: &[&str]) -> CreateRequest {
    let cmd = (!command.is_empty()).then(|| command.iter().map(|word| (*word).to_owned()).collect());
    let config = ContainerConfig { image: image.to_owned(), cmd, ..ContainerConfig::default() };
    let mut request = CreateRequest { config, endpoints: BTreeMap::new(), ..CreateRequest::default() };
    request.host_config.network_mode = "none".to_owned();
    request
}
