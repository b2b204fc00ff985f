"""Execution of one sweep, new or resumed: live progress, checkpoints kept, results written."""
