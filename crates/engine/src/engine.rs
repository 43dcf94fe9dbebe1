//! The engine: its parts, opened together, and its verbs.
//!
//! A verb that changes something runs to its end once it has begun, whether its caller stays or not; `pull` is the
//! exception: dropping its future means that the client has gone.

use std::sync::Arc;

use tokio::sync::mpsc;

use bytes::Bytes;

use crate::config::EngineConfig;
use crate::container::*;
use crate::door::Door;
use crate::error::EngineError;
use crate::events::{EventQuery, EventStream, Events};
use crate::image::*;
use crate::info::{DiskUsage, EngineInfo};
use crate::progress::ProgressSender;

/// A container engine on one store. Cheap to share; every verb takes `&Arc<Engine>`.
#[derive(Debug)]
pub struct Engine {
    pub(crate) config: EngineConfig,
    pub(crate) door: Door,
    pub(crate) events: Events,
}

impl Engine {
    /// Opens the store, adopts running containers, and gives an engine that answers. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If the store refuses to open: in use, of a newer format, on an unfit file system, or damaged.
    pub async fn open(config: EngineConfig) -> Result<Arc<Self>, EngineError> {
        let door = Door::new(config.limits.door_threads);
        Ok(Arc::new(Self { config, door, events: Events::default() }))
    }

    /// Closes the store cleanly; containers and their shims go on. Verbs fail with `ShuttingDown` from then on.
    ///
    /// # Errors
    /// If the store's log cannot be closed; nothing that was acknowledged is lost by that.
    pub async fn close(self: &Arc<Self>) -> Result<(), EngineError> {
        Ok(())
    }

    // Images.

    /// Pulls an image. Until the registry has answered for the manifest nothing is sent to `progress`: an error before
    /// the first message is a plain error of the request, one after it is the stream's last line.
    ///
    /// Dropping the future cancels the pull, except for layers that another pull waits for.
    ///
    /// # Durability
    /// `Pull complete` of a layer is sent after its record is synced; on `Ok` image and tag are durable.
    ///
    /// # Errors
    /// Those of names, registry, content, space and store, each by its own variant.
    pub async fn pull(self: &Arc<Self>, request: PullRequest, progress: ProgressSender) -> Result<Pulled, EngineError> {
        let _ = (request, progress);
        Err(EngineError::not_implemented("pull"))
    }

    /// Loads the images of an archive (docker-archive or OCI layout, plain), which arrives in pieces; `Err` from the
    /// channel ends the load. What was loaded is told by `progress`.
    ///
    /// # Errors
    /// Of the archive's form and content; nothing of a refused image is stored.
    pub async fn load(
        self: &Arc<Self>,
        request: LoadRequest,
        archive: mpsc::Receiver<Result<Bytes, std::io::Error>>,
        progress: ProgressSender,
    ) -> Result<(), EngineError> {
        let _ = (request, archive, progress);
        Err(EngineError::not_implemented("image load"))
    }

    /// All images, newest first.
    ///
    /// # Errors
    /// Of the store.
    pub async fn images(self: &Arc<Self>) -> Result<Vec<ImageSummary>, EngineError> {
        Err(EngineError::not_implemented("image list"))
    }

    /// One image by reference, ID or unique prefix of an ID.
    ///
    /// # Errors
    /// `NoSuchImage`.
    pub async fn image(self: &Arc<Self>, name: &str) -> Result<ImageDetails, EngineError> {
        let _ = name;
        Err(EngineError::not_implemented("image inspect"))
    }

    /// The steps that built an image, newest first.
    ///
    /// # Errors
    /// `NoSuchImage`.
    pub async fn image_history(self: &Arc<Self>, name: &str) -> Result<Vec<HistoryItem>, EngineError> {
        let _ = name;
        Err(EngineError::not_implemented("image history"))
    }

    /// Gives an image one more name.
    ///
    /// # Errors
    /// `NoSuchImage`, `InvalidReference`, `AmbiguousTag`.
    pub async fn tag_image(
        self: &Arc<Self>,
        name: &str,
        repository: &str,
        tag: Option<&str>,
    ) -> Result<(), EngineError> {
        let _ = (name, repository, tag);
        Err(EngineError::not_implemented("image tag"))
    }

    /// Removes a name of an image, and the image when that was the last one.
    ///
    /// # Errors
    /// `NoSuchImage`; `ImageInUse` in Docker's words.
    pub async fn remove_image(
        self: &Arc<Self>,
        name: &str,
        how: RemoveImage,
    ) -> Result<Vec<ImageDeletion>, EngineError> {
        let _ = (name, how);
        Err(EngineError::not_implemented("image removal"))
    }

    /// Removes images that nothing uses. With `dangling_only` unset, also what unfinished pulls have left.
    ///
    /// # Errors
    /// Of the store.
    pub async fn prune_images(self: &Arc<Self>, filter: PruneFilter) -> Result<Pruned<ImageDeletion>, EngineError> {
        let _ = filter;
        Err(EngineError::not_implemented("image prune"))
    }

    // Containers.

    /// Creates a container.
    ///
    /// # Errors
    /// `NoSuchImage` if the image is missing (and for nothing else); `NameInUse`; `InvalidParameter`;
    /// `NotImplemented` for each field that is not honoured yet, by name.
    pub async fn create_container(self: &Arc<Self>, request: CreateRequest) -> Result<Created, EngineError> {
        let _ = request;
        Err(EngineError::not_implemented("container create"))
    }

    /// All containers in any state, newest first. Sizes are filled in if `sizes`.
    ///
    /// # Errors
    /// Of the store.
    pub async fn containers(self: &Arc<Self>, sizes: bool) -> Result<Vec<ContainerDetails>, EngineError> {
        let _ = sizes;
        Err(EngineError::not_implemented("container list"))
    }

    /// One container, by ID, name or unique prefix of an ID.
    ///
    /// # Errors
    /// `NoSuchContainer`, `AmbiguousPrefix`.
    pub async fn container(self: &Arc<Self>, name: &str, sizes: bool) -> Result<ContainerDetails, EngineError> {
        let _ = (name, sizes);
        Err(EngineError::not_implemented("container inspect"))
    }

    /// Starts a container; returns when its program has been executed.
    ///
    /// # Errors
    /// `AlreadyStarted`; `StartFailed` in the words that decide a client's exit code.
    pub async fn start_container(self: &Arc<Self>, name: &str) -> Result<(), EngineError> {
        let _ = name;
        Err(EngineError::not_implemented("container start"))
    }

    /// Registers a wait; it is in force when this returns.
    ///
    /// # Errors
    /// `NoSuchContainer`.
    pub async fn wait_container(
        self: &Arc<Self>,
        name: &str,
        condition: WaitCondition,
    ) -> Result<ExitWait, EngineError> {
        let _ = (name, condition);
        Err(EngineError::not_implemented("container wait"))
    }

    /// Stops a container, by its signal and then by SIGKILL.
    ///
    /// # Errors
    /// `AlreadyStopped`.
    pub async fn stop_container(self: &Arc<Self>, name: &str, request: StopRequest) -> Result<(), EngineError> {
        let _ = (name, request);
        Err(EngineError::not_implemented("container stop"))
    }

    /// Stops a container if it runs, and starts it.
    ///
    /// # Errors
    /// As stop and start.
    pub async fn restart_container(self: &Arc<Self>, name: &str, request: StopRequest) -> Result<(), EngineError> {
        let _ = (name, request);
        Err(EngineError::not_implemented("container restart"))
    }

    /// Sends a signal: a name with or without `SIG`, or a number; empty is SIGKILL, which waits for the end.
    ///
    /// # Errors
    /// `Conflict` if it does not run; `InvalidParameter` for an unknown signal.
    pub async fn kill_container(self: &Arc<Self>, name: &str, signal: &str) -> Result<(), EngineError> {
        let _ = (name, signal);
        Err(EngineError::not_implemented("container kill"))
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// `Conflict` if it does not run.
    pub async fn resize_container(self: &Arc<Self>, name: &str, height: u16, width: u16) -> Result<(), EngineError> {
        let _ = (name, height, width);
        Err(EngineError::not_implemented("container resize"))
    }

    /// Reads a container's log.
    ///
    /// # Errors
    /// `InvalidParameter` if neither stream is asked for; `NotImplemented` in Docker's words for the driver `none`.
    pub async fn container_logs(self: &Arc<Self>, name: &str, request: LogsRequest) -> Result<LogStream, EngineError> {
        let _ = (name, request);
        Err(EngineError::not_implemented("container logs"))
    }

    /// Connects to a container's streams; one that has not been started yet may be attached to, and loses no byte.
    ///
    /// # Errors
    /// `Conflict` if it is paused or restarting.
    pub async fn attach_container(
        self: &Arc<Self>,
        name: &str,
        request: AttachRequest,
    ) -> Result<Attachment, EngineError> {
        let _ = (name, request);
        Err(EngineError::not_implemented("container attach"))
    }

    /// Removes a container.
    ///
    /// # Errors
    /// `Conflict` if it runs and `force` is not set, or if its removal is in progress.
    pub async fn remove_container(self: &Arc<Self>, name: &str, how: RemoveContainer) -> Result<(), EngineError> {
        let _ = (name, how);
        Err(EngineError::not_implemented("container removal"))
    }

    /// Removes containers that do not run; gives their IDs.
    ///
    /// # Errors
    /// `Conflict` if a prune is already running.
    pub async fn prune_containers(self: &Arc<Self>, filter: PruneFilter) -> Result<Pruned<String>, EngineError> {
        let _ = filter;
        Err(EngineError::not_implemented("container prune"))
    }

    /// A tar of a container's file system as it is now, without mounts.
    ///
    /// # Errors
    /// `NoSuchContainer`.
    pub async fn export_container(self: &Arc<Self>, name: &str) -> Result<ExportStream, EngineError> {
        let _ = name;
        Err(EngineError::not_implemented("container export"))
    }

    // The engine.

    /// Listens to what happens.
    ///
    /// # Errors
    /// `InvalidParameter` for a filter key that does not exist or for times that cannot be.
    pub fn events(&self, query: EventQuery) -> Result<EventStream, EngineError> {
        self.events.subscribe(query)
    }

    /// What `info` shows; a part that cannot be had is left empty.
    pub async fn info(self: &Arc<Self>) -> EngineInfo {
        EngineInfo { event_listeners: self.events.listeners(), ..EngineInfo::default() }
    }

    /// What everything takes on the disk.
    ///
    /// # Errors
    /// Of the store.
    pub async fn disk_usage(self: &Arc<Self>) -> Result<DiskUsage, EngineError> {
        Err(EngineError::not_implemented("disk usage"))
    }
}
