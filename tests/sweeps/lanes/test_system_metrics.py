"""Readings of the machine, beside those of psutil."""

import time

import psutil
import pytest

from sweeps.lanes.system_metrics import SystemMetrics


def test_memory_is_what_psutil_says() -> None:
    found = SystemMetrics().read()
    # Others allocate between the two readings.
    assert found["system/system_memory_usage_percentage"] == pytest.approx(psutil.virtual_memory().percent, abs=5)
    assert found["system/process_memory_usage_megabytes"] == pytest.approx(
        psutil.Process().memory_info().rss / 1e6, rel=0.1
    )


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
