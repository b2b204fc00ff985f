"""One global batch: loss, gradients, optimizer step, survived shortages, noise scale; and exact evaluation."""
