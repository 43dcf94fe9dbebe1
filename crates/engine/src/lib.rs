//! The verbs of the engine: pull, create, start and the rest. Knows no HTTP.
