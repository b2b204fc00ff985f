"""Corpus files to documents: finds files, detects formats and encodings, reads or rejects rows."""
