"""The training loop: start checks, steps, reports, checkpoints, memory limit, stages, outcomes."""
