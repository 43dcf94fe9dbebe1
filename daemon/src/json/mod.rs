//! The shapes of the API's answers (docker-api.md, section 5): which fields there are, under which names, for which version.
//!
//! Shapes only: no handler, no engine call. Fields that a version does not know are `None` and left out.

mod container;
mod event;
mod image;
mod info;
mod network;
mod progress;
mod stats;
mod volume;

pub(crate) use container::{ContainerInspect, ContainerListItem};
pub(crate) use event::EventLine;
pub(crate) use image::{Deletion, History, ImageInspect, ImageListItem};
pub(crate) use info::{Info, Version};
pub(crate) use network::NetworkShape;
pub(crate) use progress::{ProgressRenderer, clean, error_line};
pub(crate) use stats::stats;
pub(crate) use volume::VolumeShape;
