"""Settings of all tests, and the needs of skipped ones: a line each at the end of a run, with the command for it."""

import gc
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is slow, not wrong.
settings.register_profile("at_any_speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("at_any_speed")


LONGEST_FIRST = (
    "test_sweep_command.py",
    "test_readme_commands.py",
    "test_full_length_sweep.py",
    "test_interrupted_sweep.py",
    "test_secrets.py",
    "test_ray_job.py",
    "test_lora_sweep.py",
    "test_lane.py",
    "test_prepare.py",
    "test_elastic_lanes.py",
)
"""Files that keep Ray busy for longest: one that began last would leave the other processor idle (`make ray`)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Look for no garbage among the millions of objects that imports make: a fifth of the time that they take."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in skipped.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


def _reason(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Why a test or a module was skipped, in the words of its mark."""
    assert isinstance(report.longrepr, tuple)
    return report.longrepr[2].removeprefix("Skipped: ")
