"""Documents to a prepared corpus, once per fingerprint: survey, duplicates, tokens, blocks, node copies."""
