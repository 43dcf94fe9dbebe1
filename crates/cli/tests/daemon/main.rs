//! The binary as a daemon: what it says on its socket (`api`), how it lives as a process (`process`, `activation`); and as a client:
//! what it asks (`bodies`), what it shows and how it ends (`client`), and with a person at a keyboard (`terminal`).

mod activation;
mod api;
mod bodies;
mod client;
mod image;
mod process;
mod support;
mod terminal;
