"""Frame in, scores out: pure functions on arrays."""
