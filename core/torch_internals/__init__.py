"""Names that torch does not promise to keep, each behind a name of ours: an upgrade breaks this folder alone."""
