"""Search spaces: distributions of settings, conditions and constraints between them, valid combinations."""
