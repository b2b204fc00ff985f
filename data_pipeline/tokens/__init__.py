"""Tokens on disk and in batches: tokenizer, blocks, packing, masks, row order. The interface to `core`; no Ray."""
