"""`pretune estimate` as it prints: figures that add up, and words that are true."""

import io
import re

import pytest
from rich.console import Console

from core.memory.host_memory import CUDA_CONTEXT_BYTES
from core.memory_prediction.peak_memory import largest_micro_batch, predict_memory
from core.settings.run_config import RunConfig
from data_pipeline.schema.user_errors import InputFault
from sweep_examples import tiny_sweep
from sweeps.planning.memory_estimate import estimate_of, memory_of, print_estimate
from sweeps.planning.sweep_plan import SweepPlan, plan_sweep

MEBIBYTE = 2**20


each_format = pytest.mark.parametrize("precision", ["fp32", "bf16"])


def planned(precision: str = "auto", *overrides: str) -> SweepPlan:
    sweep = tiny_sweep("search={}", f"training.precision={precision}", *overrides)
    return plan_sweep(sweep, vocabulary_size=1000, num_cpus=2, num_gpus=0)


def estimated(plan: SweepPlan, memory: str) -> list[str]:
    """Lines of the estimate for this much memory."""
    return shown(plan, memory=memory).splitlines()


def shown(plan: SweepPlan, *, memory: str | None = None, device: str | None = None) -> str:
    """The estimate as it is printed."""
    text = io.StringIO()
    print_estimate(estimate_of(*memory_of(plan, memory=memory, device=device)), Console(file=text, width=100))
    return text.getvalue()


def fitting(run: RunConfig, memory_bytes: int, *, checkpointing: bool = False) -> int:
    changed = run.with_overrides({"training.activation_checkpointing": checkpointing})
    return largest_micro_batch(changed, 1000, memory_bytes=memory_bytes)


@pytest.mark.long
@each_format
def test_parts_add_up_to_the_peak_and_largest_micro_batches_are_named(precision: str) -> None:
    plan = planned(precision, "training.batch_size=8", "training.micro_batch_size=4")
    lines, memory_bytes = estimated(plan, "1300KiB"), 1300 * 1024
    run = plan.sweep.run_config()
    prediction = predict_memory(run, 1000, micro_batch_size=4)
    assert lines[0].startswith("micro-batch 4 ")
    shares = [int(share) for line in lines[1:-4] for share in re.findall(r"(\d+)%$", line)]
    assert len(shares) == len(prediction.parts)
    assert abs(sum(shares) - 100) <= len(shares) / 2
    assert re.match(rf"peak .*{prediction.peak_bytes / memory_bytes:.0%} of 1300KiB$", lines[-4])
    without, with_it = (fitting(run, memory_bytes, checkpointing=is_on) for is_on in (False, True))
    assert lines[-2] == f"largest micro-batch: {without}, with activation checkpointing {with_it} (of 8 rows a step)"


@each_format
def test_what_does_not_fit_is_told_what_to_change(precision: str) -> None:
    plan = planned(precision, "training.batch_size=8", "training.micro_batch_size=8")
    run = plan.sweep.run_config()
    peak = predict_memory(run, 1000, micro_batch_size=8).peak_bytes
    (words,) = estimated(plan, str(peak - MEBIBYTE // 4))[-1:]
    assert words.startswith(
        f"needs {peak / MEBIBYTE:.2f} MiB of {(peak - MEBIBYTE // 4) / MEBIBYTE:.2f} MiB; fits with "
    )
    assert f"micro-batch {fitting(run, peak - MEBIBYTE // 4)}" in words
    assert estimated(plan, str(peak))[-1].endswith("; fits")


@each_format
def test_an_automatic_micro_batch_is_shown_as_a_run_would_choose_it(precision: str) -> None:
    plan = planned(precision, "training.batch_size=8")
    peak_of_4 = predict_memory(plan.sweep.run_config(), 1000, micro_batch_size=4).peak_bytes
    assert estimated(plan, str(peak_of_4))[0].startswith("micro-batch 4 (auto)")


def test_a_gpu_by_name_is_predicted_as_a_gpu_without_its_context() -> None:
    for name in ("RTX 4090", "nvidia geforce rtx 4090"):
        plan, shown = memory_of(planned(), memory=None, device=name)
        assert (shown, plan.worker_setup.device_type) == ("RTX 4090", "cuda")
        assert 23 * 2**30 < plan.memory_bytes < 24 * 2**30


def test_what_the_figures_hold_for_is_said_and_what_of_a_gpus_memory_nobody_has_measured() -> None:
    plenty = planned("bf16", "training.micro_batch_size=1", "training.batch_size=1")
    assert "predicted for training on processors in bf16; --device predicts for a GPU" in shown(plenty, memory="1GiB")
    words = shown(plenty, device="A100 40GB")
    assert "predicted for a GPU in bf16, not measured on one" in words
    assert f"of 40 GiB CUDA's context and libraries are taken to need {CUDA_CONTEXT_BYTES / MEBIBYTE:.2f} MiB" in words
    assert "a sweep keeps another 10% free until a trial has shown that it need not" in words


def test_memory_that_nobody_can_mean_is_refused_with_what_is_known() -> None:
    with pytest.raises(InputFault, match=r"RTX 4090.*or give --memory 24GiB"):
        memory_of(planned(), memory=None, device="RTX 9999")
    with pytest.raises(InputFault, match="--memory lots"):
        memory_of(planned(), memory="lots", device=None)
    with pytest.raises(InputFault, match="not both"):
        memory_of(planned(), memory="1GiB", device="T4")
