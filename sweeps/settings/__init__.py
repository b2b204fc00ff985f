"""Sweep files: search space, sections, sizes, stages, and every fault of a file at once."""
