"""Readings of the machine, beside those of psutil."""

import time

import psutil
import pytest
import torch

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


class NVMLError(Exception):
    """As nvidia-ml-py raises for a card under MIG: no RuntimeError."""


def test_no_probe_that_fails_ends_a_trial(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_: object, **__: object) -> None:
        raise NVMLError("Not Supported")

    metrics = SystemMetrics()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10, 20))
    monkeypatch.setattr(torch.cuda, "utilization", fails)
    found = metrics.read()
    assert found["system/gpu_0_memory_usage_percentage"] == 50
    assert "system/process_memory_usage_megabytes" in found
    assert "GPU utilization cannot be read and is left out: NVMLError: Not Supported" in caplog.text
    for owner, name in (
        (torch.cuda, "is_available"),
        (psutil, "cpu_percent"),
        (psutil, "virtual_memory"),
    ):
        monkeypatch.setattr(owner, name, fails)
    assert metrics.read() == {}
