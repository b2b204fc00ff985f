"""Models on disk: checkpoints, transformers folders, PEFT adapters, initial weights of a run."""
