//! Image deltas: the layers that a device lacks, as their difference to layers that it holds extracted.
//! Bytes of a delta: docs/formats/delta.md, version 1.
//!
//! A delta is a [`Header`] and frames. The header tells what it makes, from what, and what applying costs, so that a
//! client can refuse it before it fetches more. A frame is the unit of resuming: nothing is carried from one to the next,
//! so a [`Decoder`] starts at any of them, and the number of the frame is all there is to save.
//!
//! V1  What a decoder writes is checked frame by frame and the layer's diff ID is the caller's to verify: a delta that is
//!     damaged or forged, or a source that is not what it was, ends in an error, never in another layer.
//! V2  Every number of a delta has a limit (`limits`), and what applying takes in memory is in the header; no frame writes
//!     more than its declared output, and no operation reads past its source.
//! V3  Source files are addressed by (diff ID, number of the payload in the tar), never by a path out of the delta.
//! V4  What predicts is one code for the encoder and the decoder, and a pure function of bytes that both have.
//!
//! Touches: nothing by itself. Layers are read through [`SourceLayer`], whose implementations here read a tar
//! ([`TarLayer`]) or a committed layer of the store ([`StoredLayer`]).
#![forbid(unsafe_code)]

pub mod decode;
pub mod encode;
pub mod error;
#[doc(hidden)]
pub mod fuzz;
pub mod header;
pub mod limits;
pub mod source;

mod assemble;
mod blocks;
mod bytes;
mod catalog;
mod frame;
mod matcher;
mod patch;
mod payload;
mod plan;
mod program;
mod stored;
mod tar_layer;
mod walk;

pub use decode::{Decoder, FrameDone};
pub use encode::{Level, Options, Report, Share, Target, encode};
pub use error::{DeltaError, SourceError};
pub use header::{FrameFacts, Header, LayerFacts, VERSION};
pub use source::{FileBytes, PayloadFacts, ReadAt, SourceLayer, Sources};
pub use stored::StoredLayer;
pub use tar_layer::TarLayer;
