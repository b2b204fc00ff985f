"""Trained models: found by name, loaded, exported, prompted, embedded."""
