//! A thin shell on the engine's verbs: routes, JSON shapes, hijacked streams, sockets, configuration, signals.
