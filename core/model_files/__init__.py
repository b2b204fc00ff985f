"""Models on disk: checkpoints, transformers folders, PEFT adapters, the first weights of a run."""
