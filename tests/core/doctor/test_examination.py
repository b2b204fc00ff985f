"""The checks of a device on a CPU, and what becomes of ones that fail."""

from collections.abc import Iterator

import pytest
import torch

from core.doctor import examination, number_claims
from core.doctor.all_reduce import all_reduces_of
from core.doctor.check import Check
from core.doctor.examination import examine
from core.doctor.memory_claims import FAMILIES, prediction_holds, shortages_are_survived, sizes_are_refused
from core.doctor.number_claims import losses_agree, speeds_of, steps_wait_rarely

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_predicted_memory_of_every_family_passes_here(family: str) -> None:
    (check,) = prediction_holds(family, CPU)
    assert check.verdict == "pass", check.words
    assert set(check.figures) == {f"error_at_{size}_rows_share" for size in (2, 4, 8)}


def test_a_size_beyond_the_largest_is_refused_and_a_shortage_changes_no_weight_here() -> None:
    for check in (*sizes_are_refused(CPU), *shortages_are_survived(CPU)):
        assert check.verdict == "pass", check


def test_losses_agree_and_a_step_waits_once_and_speed_is_told_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_claims, "_TIMED_S", 0.1)
    fp32, bf16 = losses_agree(CPU)
    assert fp32.verdict == "not applicable"
    assert bf16.verdict in ("pass", "not applicable")
    (waiting,) = steps_wait_rarely(CPU)
    assert (waiting.verdict, waiting.figures) == ("pass", {"calls_a_step": 1.0})
    (speed,) = speeds_of(CPU)
    assert speed.figures["tokens_per_s"] > 0


@pytest.mark.long
def test_workers_of_this_machine_add_up() -> None:
    gloo, nccl = all_reduces_of(CPU)
    assert gloo.verdict == "pass", gloo.words
    assert gloo.figures["all_reduce_gloo_bytes_per_s"] > 0
    assert nccl.verdict == "not applicable"


def test_a_check_that_raises_fails_with_its_words_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(_: torch.device) -> Iterator[Check]:
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with TORCH_USE_CUDA_DSA")

    def passes(_: torch.device) -> Iterator[Check]:
        yield Check("other", "pass", "well")

    monkeypatch.setattr(examination, "_CHECKS", {"broken": raises, "other": passes})
    said: list[str] = []
    assert examine(CPU, seconds=60, say=said.append) == [
        Check("broken", "fail", "RuntimeError: CUDA error: no kernel image is available"),
        Check("other", "pass", "well"),
    ]
    assert said == ["broken", "other"]
    assert [check.verdict for check in examine(CPU, seconds=0)] == ["not run", "not run"]
