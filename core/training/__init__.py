"""The training loop: start checks, steps, reports, checkpoints, memory budget, stages, ends."""
