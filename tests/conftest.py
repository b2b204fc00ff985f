"""Settings of all tests, and the needs of skipped ones: a line each at the end of a run, with the command for it."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is slow, not wrong.
settings.register_profile("at_any_speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("at_any_speed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the modules that look at one real sweep, for `--dist loadgroup`; every other module is its own group."""
    shared = {item.path for item in items if "tiny_sweep" in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("tiny sweep" if item.path in shared else str(item.path)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in skipped.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


def _reason(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Why a test or a module was skipped, in the words of its mark."""
    assert isinstance(report.longrepr, tuple)
    return report.longrepr[2].removeprefix("Skipped: ")
