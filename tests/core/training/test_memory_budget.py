"""Whose memory it was: a shortage of a device that a run fills alone is not a neighbour's."""

import pytest
import torch
from small_corpus import VOCABULARY
from small_runs import small_run

from core.distributed.workers import Workers
from core.memory.host_memory import within_device
from core.memory.memory_limit import memory_limit
from core.memory.out_of_memory import OomFacts
from core.memory.storage_meter import StorageMeter
from core.memory_prediction.peak_memory import WorkerSetup
from core.training.memory_budget import MemoryBudget

GIB, MIB = 2**30, 2**20
DEVICE = torch.device("cuda", 0)


class FullMeter:
    peak_bytes = current_bytes = 0
    is_running = True

    def track(self, *things: object) -> None: ...

    def stop(self) -> None: ...


def test_limit_of_a_card_is_what_this_process_can_have_beside_context_and_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2 * GIB)
    assert within_device(24 * GIB, DEVICE) == 22 * GIB
    assert within_device(10 * GIB, DEVICE) == 10 * GIB
    assert within_device(None, DEVICE) is None
    assert within_device(24 * GIB, torch.device("cpu")) == 24 * GIB


@pytest.mark.parametrize(("reserved_below_limit", "is_neighbours"), [(10 * MIB, False), (500 * MIB, True)])
def test_a_shortage_at_the_limit_is_not_blamed_on_a_neighbour(reserved_below_limit: int, is_neighbours: bool) -> None:
    limit_bytes = 4 * GIB
    budget = MemoryBudget(
        small_run(), VOCABULARY.size, WorkerSetup(device_type="cuda"), Workers(), FullMeter(), limit_bytes
    )
    # The allocator rounds a request up to segments of 20 MiB, and its reserved memory holds gaps.
    facts = OomFacts(
        kind="device", error_type="", message="", bytes_asked=MIB, bytes_in_use=limit_bytes - reserved_below_limit
    )
    assert budget.predicted_bytes(8) < limit_bytes
    assert budget.smaller(8, facts).is_neighbours == is_neighbours


def test_memory_of_a_run_on_a_card_is_what_the_limit_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("empty_cache", "reset_peak_memory_stats", "set_per_process_memory_fraction"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: calls.append(name))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 5 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * GIB)
    with memory_limit(None, DEVICE) as meter:
        # Counting each operator is for processors alone.
        assert not isinstance(meter, StorageMeter)
        assert (meter.peak_bytes, meter.current_bytes) == (5 * GIB, 3 * GIB)
    # Memory that an earlier run left in the allocator's cache is given back before the peak counts anew.
    assert calls == ["empty_cache", "reset_peak_memory_stats", "set_per_process_memory_fraction"]
