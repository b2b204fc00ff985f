"""Peak memory without a run: a real step on fake tensors, an allocator replayed, the largest micro-batch that fits."""
