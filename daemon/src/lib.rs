//! The daemon: Docker's Engine API on the verbs of `baleen-engine`.
//!
//! In reading order: [`settings`] is what it is told, `process` is its life (sockets, signals, end), `sockets` is where it
//! listens, `http` is the protocol, `api` the routes, `json` the shapes.
//!
//! A1  No rule of the engine is here: handlers parse, call one verb, and render its answer.
//! A2  Every input has a limit: heads and bodies (`http`), JSON (`api::input`), filters (`api::filters`), files (`settings`).
//! A3  Credentials and environments of containers are never logged.
//! A4  The event loop never blocks: what blocks goes through the engine's door.

#![deny(unsafe_op_in_unsafe_fn)]

mod api;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod json;
mod logging;
mod places;
mod process;
pub mod settings;
mod sockets;
mod sys;

pub use baleen_engine::{LayerFetcher, chain};
pub use places::PlaceError;
pub use process::{DaemonError, layer_fetcher, run};
pub use sockets::SocketError;
