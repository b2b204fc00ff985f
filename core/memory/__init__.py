"""Memory as it is: limits and what counts toward them, out-of-memory errors, leaks, allocators."""
