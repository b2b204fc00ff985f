"""Figures of a run that cannot be read."""

from pathlib import Path

import pytest
from small_runs import final_weights, small_run, train

from core.step.step_profile import StepProfile
from core.training import training_run


def fails(*_: object, **__: object) -> float:
    raise OSError("the driver refuses")


def test_a_run_whose_observations_all_fail_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run()
    train(run, tmp_path / "fine")
    monkeypatch.setattr(training_run, "matmul_flops_per_s", fails)
    monkeypatch.setattr(training_run, "model_flops_a_token", fails)
    monkeypatch.setattr(training_run, "_FLOPS_ARE_COUNTED_AFTER_S", 0.0)
    monkeypatch.setattr(StepProfile, "read", fails)
    reports: list[dict[str, float]] = []
    end = train(run, tmp_path / "blind", report=lambda values: reports.append(values) or True, report_every_s=0.0)
    assert end.outcome == "completed"
    assert final_weights(tmp_path / "fine") == final_weights(tmp_path / "blind")
    assert reports[-1]["train/tokens_per_s"] > 0
    assert not any(name.startswith("profile/") for name in reports[-1])
