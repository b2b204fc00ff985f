"""Peak memory without a run: the real step on fake tensors, allocator replay, the largest micro-batch that fits."""
