"""Corpus files to token blocks and batches. Depends on Ray Data and tokenizers, not on models."""
