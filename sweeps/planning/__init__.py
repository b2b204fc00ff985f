"""Decides what a sweep does before its first trial."""
