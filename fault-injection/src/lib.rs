//! Simulated disks, crash states and failing I/O for the tests of the other crates.
