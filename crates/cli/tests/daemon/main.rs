//! The binary as a daemon: what it says on its socket (`api`) and how it lives as a process (`process`).

mod api;
mod process;
mod support;
