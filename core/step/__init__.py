"""One global batch: loss, gradients, optimizer step, out-of-memory recovery, noise scale; and exact evaluation."""
