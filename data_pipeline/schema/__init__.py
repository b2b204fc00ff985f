"""Shared vocabulary of all packages: settings, user errors, corpora, manifest, rejects, whole files."""
