"""Bytes of one file to text and rows, in bounded memory: encodings, compression, CSV, JSON arrays, Parquet."""
