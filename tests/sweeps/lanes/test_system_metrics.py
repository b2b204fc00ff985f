"""Readings of the machine, beside those of psutil."""

import time

import psutil
import pytest

from patience import wait_until
from sweeps.lanes.system_metrics import SystemMetrics


def test_memory_is_what_psutil_says() -> None:
    metrics = SystemMetrics()

    def agree() -> bool:
        found = metrics.read()
        of_machine = pytest.approx(psutil.virtual_memory().percent, abs=0.5)
        of_process = pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.01)
        return (of_machine, of_process) == (
            found["system/system_memory_usage_percentage"],
            found["system/process_memory_usage_megabytes"],
        )

    # Other processes may allocate between two readings, but not between all of them.
    wait_until(agree, "the readings never agreed")


def test_a_busy_process_shows_and_a_sleeping_one_does_not() -> None:
    machine = SystemMetrics()
    before = time.process_time()
    while time.process_time() - before < 0.2:
        pass
    busy = machine.read()
    time.sleep(0.3)
    idle = machine.read()
    assert idle["system/process_cpu_utilization_percentage"] < busy["system/process_cpu_utilization_percentage"]
    for reading in (busy, idle):
        assert 0 <= reading["system/cpu_utilization_percentage"] <= 100
