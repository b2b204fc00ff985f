"""Real memory: limits, out-of-memory errors, leaks, allocators."""
