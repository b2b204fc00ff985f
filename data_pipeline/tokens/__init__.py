"""Tokens at rest and in batches: tokenizer, blocks, packed rows, masks, order; all that `core` sees. No Ray."""
