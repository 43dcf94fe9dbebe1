//! Images: pull, load, list, inspect, history, tag, remove, prune.

use baleen_engine::{EngineError, LoadRequest, Progress, PullRequest, RegistryAuth, RemoveImage, progress_channel};
use baleen_oci::{Platform, Reference, Repository};
use serde_json::json;
use tokio::sync::mpsc;

use super::filters::{Filters, image_fits};
use super::{Answer, ApiError, Call};
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
        .filter(|image| image_fits(&filters, dangling, image))
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
    if call.query.text("tag").is_none() && Repository::parse(from).is_ok() {
        return Err(ApiError::not_implemented("pull of all tags"));
    }
    let invalid = |source| EngineError::InvalidReference { text: from.to_owned(), source };
    let reference = Reference::from_image_and_tag(from, call.query.text("tag")).map_err(invalid)?;
    let request = PullRequest {
        reference,
        platform: platform(&call)?,
        auth: call.head.headers.get("x-registry-auth").map_or_else(RegistryAuth::anonymous, RegistryAuth::from_header),
    };
    let engine = call.engine().clone();
    let (sender, mut progress) = progress_channel();
    // The future owns the pull: dropping it is how a client that has gone cancels it.
    let mut pull = Box::pin(async move { engine.pull(request, sender).await });
    // Until the first message an error is a plain refusal.
    let first = tokio::select! {
        biased;
        first = progress.recv() => first,
        done = &mut pull => match done {
            Err(error) => return Err(error.into()),
            // It was quicker than its first message was taken.
            Ok(_) => {
                let (chunks, receiver) = chunks();
                tokio::spawn(async move { let _ = forward(&chunks, ProgressRenderer::Pull, progress).await; });
                return Ok(Reply::stream("application/json", receiver));
            }
        },
        () = call.gone.wait() => return Err(ApiError::new(500, "the client has gone")),
    };
    let (chunks, receiver) = chunks();
    tokio::spawn(async move {
        if let Some(first) = first
            && chunks.send(ProgressRenderer::Pull.line(&first)).await.is_err()
        {
            return;
        }
        let work = run_and_forward(&chunks, ProgressRenderer::Pull, pull, progress);
        tokio::select! {
            () = work => {}
            () = chunks.closed() => tracing::info!("the client of a pull has gone"),
        }
    });
    Ok(Reply::stream("application/json", receiver))
}

/// Runs a verb and forwards what it tells; its error is the last line.
async fn run_and_forward<T>(
    chunks: &Chunks,
    renderer: ProgressRenderer,
    verb: impl Future<Output = Result<T, EngineError>>,
    progress: mpsc::Receiver<Progress>,
) {
    // The verb drops its sender when it ends, which ends the forwarding after everything was taken.
    let (done, ()) = tokio::join!(verb, forward(chunks, renderer, progress));
    if let Err(error) = done {
        tracing::warn!(error = error.chain(), "a streamed request failed");
        let _ = chunks.send(error_line(&error.chain())).await;
    }
}

async fn forward(chunks: &Chunks, renderer: ProgressRenderer, mut progress: mpsc::Receiver<Progress>) {
    while let Some(message) = progress.recv().await {
        if chunks.send(renderer.line(&message)).await.is_err() {
            return;
        }
    }
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
        let load = async move { engine.load(request, pieces, sender).await };
        tokio::join!(feed, run_and_forward(&chunks, ProgressRenderer::Load, load, progress));
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
