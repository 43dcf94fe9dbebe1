//! Images: pull, push, deltas, load, list, inspect, history, tag, remove, prune.

use baleen_engine::{
    DeltaLevel, EngineError, LoadRequest, MakeDelta, Progress, PullRequest, PushRequest, RegistryAuth, RemoveImage,
    progress_channel,
};
use baleen_oci::{Platform, Reference, Repository};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::filters::{Filters, image_fits};
use super::input::{self, JSON_BYTES_MAX, Value};
use super::{Answer, ApiError, Call, body_error};
use crate::http::{Chunks, Reply, chunks};
use crate::json::{Deletion, History, ImageInspect, ImageListItem, ProgressRenderer, error_line};

/// Messages of an archive's bytes on their way to the engine.
const LOAD_QUEUE: usize = 4;

/// `GET /images/json`.
pub(crate) async fn list(call: &Call) -> Answer {
    let filters = Filters::parse(call.query.get("filters"))?;
    filters.check(&["before", "dangling", "label", "reference", "since", "until"])?;
    let dangling = filters.boolean("dangling")?;
    let before = moment(call, &filters, "before").await?;
    let since = moment(call, &filters, "since").await?;
    let until = filters.prune_until()?;
    let images = call.engine().images().await?.into_iter();
    let shown = images
        .filter_map(|mut image| image_fits(&filters, dangling, &mut image).then_some(image))
        .filter(|image| before.is_none_or(|before| image.created < Some(before)))
        .filter(|image| since.is_none_or(|since| image.created > Some(since)))
        .filter(|image| until.is_none_or(|until| image.created < Some(until)))
        .map(|image| ImageListItem::new(image, call.asked));
    super::json(200, &shown.collect::<Vec<_>>())
}

/// When the image that a filter names was created.
async fn moment(call: &Call, filters: &Filters, key: &str) -> Result<Option<baleen_engine::Timestamp>, ApiError> {
    match filters.values(key).first() {
        Some(name) => Ok(call.engine().image(name).await?.summary.created),
        None => Ok(None),
    }
}

/// `POST /images/create`: a pull, or an import.
pub(crate) async fn create(call: Call) -> Answer {
    if call.query.text("fromSrc").is_some() {
        return Err(ApiError::not_implemented("image import"));
    }
    let from =
        call.query.text("fromImage").ok_or_else(|| ApiError::invalid("invalid reference format: no image is named"))?;
    let all_tags = Repository::parse(from).ok().filter(|_| call.query.text("tag").is_none());
    let invalid = |source| EngineError::InvalidReference { text: from.to_owned(), source };
    let reference = Reference::from_image_and_tag(from, call.query.text("tag")).map_err(invalid)?;
    let request = PullRequest { reference, platform: platform(&call)?, auth: registry_auth(&call) };
    let engine = call.engine().clone();
    let (sender, progress) = progress_channel();
    let pull = OwnTask::spawn(async move {
        match all_tags {
            None => engine.pull(request, sender).await.map(drop),
            Some(repository) => {
                engine.pull_all_tags(&repository, request.platform, request.auth, sender).await.map(drop)
            }
        }
    });
    answer_with(&call, pull, progress).await
}

/// Answers with what a verb tells. Dropping its task ends it: that is how a client that has gone cancels it.
async fn answer_with(call: &Call, mut verb: OwnTask, mut progress: mpsc::Receiver<Progress>) -> Answer {
    // Until the first message an error is a plain refusal.
    let first = tokio::select! {
        biased;
        first = progress.recv() => first,
        () = call.gone.wait() => return Err(ApiError::new(500, "the client has gone")),
    };
    let Some(first) = first else {
        // It ended without a word.
        verb.finished().await.map_err(unprompted)?;
        return Ok(Reply::whole(200, "application/json", ""));
    };
    let (chunks, receiver) = chunks();
    tokio::spawn(async move {
        if chunks.send(ProgressRenderer::Pull.line(&first)).await.is_ok() {
            run_and_forward(chunks, ProgressRenderer::Pull, verb, progress).await;
        }
    });
    Ok(Reply::stream("application/json", receiver))
}

/// `POST /images/{name}/push`.
pub(crate) async fn push(name: &str, mut call: Call) -> Answer {
    let invalid = |source| EngineError::InvalidReference { text: name.to_owned(), source };
    let repository = Repository::parse(name).map_err(invalid)?;
    let tag = call.query.text("tag").map(str::to_owned);
    let body = call.body.all(JSON_BYTES_MAX).await.map_err(|error| body_error(&error))?;
    let auth = match call.head.headers.get("x-registry-auth") {
        Some(header) => RegistryAuth::from_header(header),
        // How clients sent it before there was a header.
        None if !body.trim_ascii().is_empty() => RegistryAuth::from_json(&body)?,
        None => RegistryAuth::anonymous(),
    };
    let request = PushRequest { repository, tag, auth };
    let engine = call.engine().clone();
    let (sender, progress) = progress_channel();
    let push = OwnTask::spawn(async move { engine.push(request, sender).await });
    answer_with(&call, push, progress).await
}

/// `POST /images/delta`: makes a delta from `src` to `dest`, and pushes it to the repository of `dest`, or to `t`.
pub(crate) async fn delta(call: Call) -> Answer {
    let name = |key: &'static str| {
        let missing = move || ApiError::invalid(format!("an image must be named by {key}"));
        call.query.text(key).map(str::to_owned).ok_or_else(missing)
    };
    let (source, target) = (name("src")?, name("dest")?);
    let place = call.query.text("t").unwrap_or(&target).to_owned();
    let invalid = |source| EngineError::InvalidReference { text: place.clone(), source };
    let push_to = Some(Reference::parse(&place).map_err(invalid)?.repository().clone());
    let auth = registry_auth(&call);
    let request = MakeDelta { source, target, push_to, file: None, level: DeltaLevel::Default, auth };
    let engine = call.engine().clone();
    let (sender, progress) = progress_channel();
    let making = OwnTask::spawn(async move { engine.make_delta(request, sender).await.map(drop) });
    answer_with(&call, making, progress).await
}

/// `POST /auth`: whether a registry takes these credentials.
pub(crate) async fn log_in(mut call: Call) -> Answer {
    let body = call.body.all(JSON_BYTES_MAX).await.map_err(|error| body_error(&error))?;
    let mut given = input::parse(&body)?;
    // Clients write these keys in any case.
    let mut text = |key: &str| match given.take(key) {
        Value::String(text) => text,
        _ => String::new(),
    };
    let server = text("serveraddress");
    let (username, password, token) = (text("username"), text("password"), text("identitytoken"));
    let auth = json!({ "username": username, "password": password, "identitytoken": token });
    call.engine().log_in(&server, &RegistryAuth::from_json(auth.to_string().as_bytes())?).await?;
    super::json(200, &json!({ "Status": "Login Succeeded", "IdentityToken": "" }))
}

fn registry_auth(call: &Call) -> RegistryAuth {
    call.head.headers.get("x-registry-auth").map_or_else(RegistryAuth::anonymous, RegistryAuth::from_header)
}

/// `GET /distribution/{name}/json`.
pub(crate) async fn distribution(name: &str, call: &Call) -> Answer {
    let invalid = |source| EngineError::InvalidReference { text: name.to_owned(), source };
    let reference = Reference::parse(name).map_err(invalid)?;
    let found = call.engine().distribution(&reference, &registry_auth(call)).await?;
    let descriptor = json!({ "mediaType": found.media_type, "digest": found.digest, "size": found.size_bytes });
    super::json(200, &json!({ "Descriptor": descriptor, "Platforms": found.platforms }))
}

/// Makes a registry's 401 a 500, as Docker's own engine does. The docker CLI answers 401 with a prompt for a login, and one
/// that has no terminal then waits for ever (seen with 28.2.2): a device's script must get its error.
fn unprompted(error: ApiError) -> ApiError {
    if error.status == 401 { ApiError { status: 500, ..error } } else { error }
}

/// A verb in a task of its own, so that its panic is an error; it ends with its owner.
struct OwnTask(JoinHandle<Result<(), EngineError>>);

impl OwnTask {
    fn spawn(verb: impl Future<Output = Result<(), EngineError>> + Send + 'static) -> OwnTask {
        OwnTask(tokio::spawn(verb))
    }

    async fn finished(&mut self) -> Result<(), ApiError> {
        match (&mut self.0).await {
            Ok(done) => done.map_err(ApiError::from),
            Err(error) => {
                tracing::error!(error = %error, "a streamed request panicked");
                Err(ApiError::new(500, "internal error: this request panicked; see the daemon's log"))
            }
        }
    }
}

impl Drop for OwnTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Forwards what a verb tells until it or the client's patience ends; its error is the last line.
async fn run_and_forward(
    chunks: Chunks,
    renderer: ProgressRenderer,
    mut verb: OwnTask,
    mut progress: mpsc::Receiver<Progress>,
) {
    loop {
        // The verb drops its sender when it ends: then everything it told has been taken.
        let message = tokio::select! {
            message = progress.recv() => message,
            () = chunks.closed() => return tracing::info!("the client of a streamed request has gone"),
        };
        let Some(message) = message else { break };
        if chunks.send(renderer.line(&message)).await.is_err() {
            return;
        }
    }
    if let Err(error) = verb.finished().await {
        tracing::warn!(error = error.message, "a streamed request failed");
        if chunks.send(error_line(&error.message)).await.is_err() {
            return;
        }
    }
    chunks.end();
}

/// `POST /images/load`.
pub(crate) async fn load(call: Call) -> Answer {
    let request = LoadRequest { quiet: call.query.boolean("quiet", true), platform: None };
    let engine = call.engine().clone();
    let mut body = call.body;
    let (sender, progress) = progress_channel();
    let (archive, pieces) = mpsc::channel(LOAD_QUEUE);
    let (chunks, receiver) = chunks();
    tokio::spawn(async move {
        let feed = async move {
            loop {
                let piece = match body.chunk().await {
                    Ok(Some(piece)) => Ok(piece),
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                let failed = piece.is_err();
                // The engine may have seen enough; what the client still sends is thrown away by the connection.
                if archive.send(piece).await.is_err() || failed {
                    return;
                }
            }
        };
        let load = OwnTask::spawn(async move { engine.load(request, pieces, sender).await });
        tokio::join!(feed, run_and_forward(chunks, ProgressRenderer::Load, load, progress));
    });
    Ok(Reply::stream("application/json", receiver))
}

/// `GET /images/{name}/json`.
pub(crate) async fn inspect(name: &str, call: &Call) -> Answer {
    let details = call.engine().image(name).await?;
    super::json(200, &ImageInspect::new(details, call.asked))
}

/// `GET /images/{name}/history`.
pub(crate) async fn history(name: &str, call: &Call) -> Answer {
    let items = call.engine().image_history(name).await?;
    super::json(200, &items.into_iter().map(History::from).collect::<Vec<_>>())
}

/// `POST /images/{name}/tag`.
pub(crate) async fn tag(name: &str, call: &Call) -> Answer {
    let repository = call.query.get("repo").unwrap_or_default();
    call.engine().tag_image(name, repository, call.query.text("tag")).await?;
    Ok(Reply::empty(201))
}

/// `DELETE /images/{name}`.
pub(crate) async fn remove(name: &str, call: &Call) -> Answer {
    let how = RemoveImage { force: call.query.boolean("force", false), no_prune: call.query.boolean("noprune", false) };
    let done = call.engine().remove_image(name, how).await?;
    super::json(200, &done.into_iter().map(Deletion::from).collect::<Vec<_>>())
}

/// `POST /images/prune`.
pub(crate) async fn prune(call: &Call) -> Answer {
    let filter = Filters::parse(call.query.get("filters"))?.prune(true)?;
    let done = call.engine().prune_images(filter).await?;
    let deleted: Vec<Deletion> = done.deleted.into_iter().map(Deletion::from).collect();
    let deleted = (!deleted.is_empty()).then_some(deleted);
    super::json(200, &json!({ "ImagesDeleted": deleted, "SpaceReclaimed": done.reclaimed_bytes }))
}

/// The query's `platform`; none if it is not given.
pub(crate) fn platform(call: &Call) -> Result<Option<Platform>, ApiError> {
    let parse = |text: &str| text.parse::<Platform>().map_err(|error| ApiError::invalid(error.to_string()));
    call.query.text("platform").map(parse).transpose()
}
