"""Settings of all tests, and the needs of skipped ones: a line each at the end of a run, with the command for it."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is slow, not wrong.
settings.register_profile("at_any_speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("at_any_speed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in skipped.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


def _reason(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Why a test or a module was skipped, in the words of its mark."""
    assert isinstance(report.longrepr, tuple)
    return report.longrepr[2].removeprefix("Skipped: ")
