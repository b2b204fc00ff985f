"""From corpus files to token blocks and batches. Knows Ray Data and tokenizers; knows nothing of models."""
