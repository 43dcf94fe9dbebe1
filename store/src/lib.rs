//! The durable content-addressed store: the file port, the write-ahead log, objects, collection, opening.
