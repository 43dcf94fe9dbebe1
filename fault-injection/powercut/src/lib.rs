//! Records what a program writes to a disk, and judges it in every state that a power cut could have left.

#![deny(unsafe_code)]

pub mod workload;
