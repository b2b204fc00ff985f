"""How often a step waits for its device or for other workers, and how much of the time checkpoints take."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from absent_workers import AbsentWorkers
from small_runs import small_run, train
from small_steps import a_step
from small_steps import train as take_steps
from torch import Tensor

from core.distributed.workers import Workers
from core.torch_internals.blocking_calls import BlockingCalls
from core.training import run_checkpoints
from core.training.run_checkpoints import RunCheckpoints

NUM_STEPS = 20


@dataclass(frozen=True)
class CountingWorkers(AbsentWorkers):
    calls: Counter[str] = field(default_factory=Counter)

    def largest(self, value: int) -> int:
        self.calls["agreements"] += 1
        return value

    def from_first(self, value: int) -> int:
        self.calls["agreements"] += 1
        return value

    def all_values(self, value: object) -> list[object]:
        self.calls["exchanged objects"] += 1
        return [value] * self.count

    def add_up(self, tensor: Tensor) -> Tensor:
        self.calls["sums"] += 1
        return tensor.mul_(self.count)  # As if the others had the same.


def calls_of(num_steps: int, folder: Path) -> Counter[str]:
    workers = CountingWorkers(count=2)
    train(small_run().with_overrides({"training.tokens": num_steps * 16 * 16}), folder, workers=workers)
    return workers.calls


def test_a_step_without_a_report_agrees_twice_and_adds_up_once(tmp_path: Path) -> None:
    few, many = calls_of(NUM_STEPS, tmp_path / "few"), calls_of(2 * NUM_STEPS, tmp_path / "many")
    # The start, the end and the evaluation cost both runs the same. A report of loss and norm is part of the sum.
    assert {name: (many[name] - few[name]) / NUM_STEPS for name in many} == {
        "agreements": 2,
        "sums": 1,
        "exchanged objects": 0,
    }


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_a_step_waits_for_its_device_once(family: str) -> None:
    step = a_step(Workers(), micro_batch_size=4, family=family)
    take_steps(step, num_steps=1)
    with BlockingCalls() as calls:
        take_steps(step, num_steps=3, from_step=1)
    assert calls.counts == {"tolist": 3}, str(calls)


def test_workers_agree_on_the_host_where_the_process_group_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = AbsentWorkers(count=2, device=torch.device("cuda", 0))
    assert workers.control_device == workers.device
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    for config, device in (("cpu:gloo,cuda:nccl", "cpu"), ("cuda:nccl", "cuda:0")):
        monkeypatch.setattr(dist, "get_backend_config", lambda config=config: config)
        assert workers.control_device == torch.device(device)


@pytest.mark.parametrize("cost_s", [0.1, 6.0, 60.0])
def test_checkpoints_take_two_percent_of_the_time_at_most(
    cost_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    written: list[float] = []

    def save(*_: object, **__: object) -> None:
        nonlocal now
        written.append(now)
        now += cost_s

    monkeypatch.setattr(run_checkpoints.time, "monotonic", lambda: now)
    monkeypatch.setattr(run_checkpoints, "save_checkpoint", save)
    step = a_step(Workers(), micro_batch_size=8)
    checkpoints = RunCheckpoints(
        tmp_path, step.model, step.optimizer, Workers(), lambda: {"progress": {"step": 1}, "micro_batch_size": 8}
    )
    assert not checkpoints.is_due(None)
    ends_at = 50_000.0
    while now < ends_at:
        now += 1.0
        if checkpoints.is_due(60.0):
            checkpoints.write()
    assert cost_s * len(written) <= 0.021 * now + cost_s
    # Not rarer than the limits ask for.
    assert len(written) >= 0.9 * ends_at / max(61, cost_s / 0.02 + cost_s + 1)
