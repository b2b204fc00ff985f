"""GPUs as tasks on their nodes see them, and the driver that never touches one."""

from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray
import torch
from swept_folder import example_sweep

from core.memory.device_facts import DeviceFacts, as_json, from_json, smallest_of, visible_devices
from core.memory.host_memory import NCCL_BYTES
from core.memory_prediction.peak_memory import predicted_precision
from core.settings.run_config import RunConfig
from gpu_cards import a_card
from sweeps.lanes import cards, hardware
from sweeps.lanes.cards import cards_on, differences
from sweeps.lanes.lane_planning import device_kind, plan_lanes, worker_memory_bytes
from sweeps.planning.sweep_plan import ResourcesError, plan_sweep
from sweeps.settings.sweep_sections import ResourcesConfig

GIB = 2**30
HEAD_AND_FOUR: dict[str, Any] = {
    "num_cpus": 32,
    "num_gpus": 4,
    "nodes": [{"CPU": 0.0}] + [{"CPU": 8.0, "GPU": 1.0}] * 4,
}


def test_a_head_node_without_a_gpu_plans_with_the_memory_of_the_cards() -> None:
    plan = plan_sweep(example_sweep(), vocabulary_size=1000, cards=lambda: [a_card(free=23)] * 4, **HEAD_AND_FOUR)
    assert plan.memory_bytes == 23 * GIB
    assert "differ" not in plan.lanes.reason


def test_of_unequal_cards_the_smallest_counts_and_the_plan_tells_all() -> None:
    unequal = [a_card(free=23), a_card("T4", total=16, free=15, capability=(7, 5)), a_card(free=23)]
    plan = plan_sweep(example_sweep(), vocabulary_size=1000, cards=lambda: unequal, **HEAD_AND_FOUR)
    assert plan.memory_bytes == 15 * GIB
    assert plan.lanes.reason.endswith("GPUs differ: 2 x RTX 4090 24 GiB, 1 x T4 16 GiB; the smallest counts")
    # One of them multiplies no bf16, so its trials run, and are predicted, in fp32.
    assert predicted_precision(RunConfig.model_validate({"objective": "masked_lm"}), plan.worker_setup) == "fp32"


def test_a_plan_for_gpus_that_nobody_sees_is_refused() -> None:
    with pytest.raises(ResourcesError, match=r"none is visible here; set resources.device: cpu"):
        plan_sweep(example_sweep(), vocabulary_size=1000, num_cpus=4, num_gpus=1, cards=list)


def test_buffers_of_nccl_are_no_memory_of_a_trial_with_several_workers() -> None:
    alone, both = (
        plan_lanes(ResourcesConfig(workers_per_trial=count), num_trials=1, num_cpus=8, num_gpus=2) for count in (1, 2)
    )
    assert worker_memory_bytes(ResourcesConfig(), alone, device_bytes=23 * GIB) == 23 * GIB
    assert worker_memory_bytes(ResourcesConfig(), both, device_bytes=23 * GIB) == 23 * GIB - NCCL_BYTES


def test_facts_travel_as_json() -> None:
    facts = [a_card(), a_card("T4", capability=(7, 5))]
    assert from_json(as_json(facts)) == facts
    assert differences(facts)
    assert smallest_of([]) is None
    assert visible_devices() == []


class TouchedError(Exception):
    """The driver has called CUDA."""


def test_the_driver_touches_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object) -> None:
        raise TouchedError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("_lazy_init", "mem_get_info", "get_device_properties", "get_device_name", "is_bf16_supported"):
        monkeypatch.setattr(torch.cuda, name, touched)
    # One module may ask: a process of its own, which ends at once.
    monkeypatch.setattr(cards, "_here", lambda: (a_card(), a_card()))
    plan = plan_sweep(example_sweep(), vocabulary_size=1000, num_cpus=8)
    assert plan.lanes.use_gpu
    assert device_kind(plan.lanes) == "RTX 4090 24 GiB"
    assert predicted_precision(RunConfig.model_validate({"objective": "masked_lm"}), plan.worker_setup) == "bf16"
    found = hardware.hardware([{"CPU": 8.0, "GPU": 2.0}])
    assert found["GPUs"] == "2 x RTX 4090, 24 GiB, compute capability 8.9, driver 550.54"


@pytest.mark.ray
def test_every_card_of_a_node_answers_and_lanes_are_equally_many_on_each(tmp_path: Path) -> None:
    def seen() -> list[DeviceFacts]:
        return [DeviceFacts(f"card {number:.0f}", 1, 1, (8, 0), True, "") for number in ray.get_gpu_ids()]

    with mock.patch.dict("os.environ", {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}):
        ray.init(address="local", num_cpus=8, num_gpus=2, include_dashboard=False, log_to_driver=False)
    try:
        node = ray.get_runtime_context().get_node_id()
        assert sorted(one.name for one in cards_on(((node, 2.0),), seen)) == ["card 0", "card 1"]
        lanes = plan_lanes(ResourcesConfig(concurrent_trials=5), num_trials=9, num_cpus=8, num_gpus=2)
        assert (lanes.count, lanes.gpus_per_worker) == (4, 0.5)
        assert "4 at a time on 2 GPUs, 2 to a GPU (5 asked; lanes come in whole multiples of GPUs)" in lanes.reason
        spec = lanes.spec(tmp_path)

        @ray.remote(num_cpus=1, num_gpus=spec.gpus_per_worker)
        class Worker:
            def cards(self) -> list[int]:
                return [int(number) for number in ray.get_gpu_ids()]

        workers = [Worker.remote() for _ in range(lanes.count)]
        held = Counter(number for found in ray.get([one.cards.remote() for one in workers]) for number in found)
        assert held == {0: 2, 1: 2}
    finally:
        ray.shutdown()
