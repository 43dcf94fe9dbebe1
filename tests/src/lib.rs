//! Whole-system tests: end to end with real clients, crashes, conformance.
