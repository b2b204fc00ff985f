"""Keeps Tune silent in a notebook, where it clears the output of the cell for a table of its own."""

from typing import Any

from ray import tune


class SilentReporter(tune.ProgressReporter):
    """Reports nothing: a sweep has a view of its own."""

    def should_report(self, *_: Any, **__: Any) -> bool:
        """Never."""
        return False

    def report(self, *_: Any, **__: Any) -> None:
        """Print nothing."""
