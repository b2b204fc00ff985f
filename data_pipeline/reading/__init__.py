"""Corpus files to documents: files found, formats and encodings recognized, rows read or rejected."""
