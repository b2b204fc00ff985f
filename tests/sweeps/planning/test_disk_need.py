"""The disk that a sweep needs: its parts are those that a sweep writes, and too little room is refused with figures."""

from pathlib import Path

import pytest
import torch
from small_disk import small_disk

from core.model_files.checkpoint import save_best, save_checkpoint
from core.models.model_factory import build_model
from core.step.optimizer import build_optimizer
from data_pipeline.files.disk_room import RESERVE_BYTES
from sweep_examples import tiny_sweep
from sweeps.planning.disk_need import DiskNeed, NoDiskError, bytes_below, check_disk, disk_needs
from sweeps.planning.sweep_plan import SweepPlan, plan_sweep

MIB = 1 << 20


def plan_of(*overrides: str) -> SweepPlan:
    return plan_sweep(tiny_sweep("resources.concurrent_trials=1", *overrides), vocabulary_size=1000)


def need_of(plan: SweepPlan, folder: Path) -> DiskNeed:
    return disk_needs(plan, folder)[0]


def test_checkpoints_are_counted_as_they_are_written(tmp_path: Path) -> None:
    plan = plan_of("model.width=128", "early_stopping.method=none", "training.schedule=cosine", "budget.trials=1")
    run = plan.sweep.run_config()
    model = build_model(run.model, 1000)
    optimizer = build_optimizer(model, run.training, tokens_per_step=512)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    save_checkpoint(tmp_path, model, optimizer, {}, step=1)
    save_best(tmp_path, model, {}, step=1)
    kept = bytes_below(tmp_path)
    next_one = sum(file.stat().st_size for file in (tmp_path / "step-000000000001").iterdir())
    # Headers and small files are guessed.
    assert need_of(plan, tmp_path).parts["checkpoints"] == pytest.approx(kept + next_one, rel=0.05)


def test_more_lanes_pauses_and_a_cooldown_keep_more_checkpoints(tmp_path: Path) -> None:
    plain = ("early_stopping.method=none", "training.schedule=cosine")
    few = need_of(plan_of(*plain), tmp_path).parts["checkpoints"]
    two = plan_sweep(tiny_sweep("resources.concurrent_trials=2", *plain), vocabulary_size=1000, num_cpus=2)
    assert need_of(two, tmp_path).parts["checkpoints"] > few
    with_trunks = need_of(plan_of("early_stopping.method=none"), tmp_path).parts["checkpoints"]
    assert with_trunks > few
    assert need_of(plan_of("early_stopping.method=trunk-and-branch"), tmp_path).parts["checkpoints"] > with_trunks


def test_the_largest_model_of_the_space_counts(tmp_path: Path) -> None:
    swept = need_of(plan_of("search={model.width: {choice: [32, 64, 128]}, model.layers: {choice: [1, 2]}}"), tmp_path)
    largest = need_of(plan_of("model.width=128", "model.layers=2"), tmp_path)
    assert swept.parts["checkpoints"] == largest.parts["checkpoints"]


def test_a_store_of_mlflow_elsewhere_has_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other/mlflow.db")
    places = [need.place for need in disk_needs(plan_of(), tmp_path / "results")]
    assert places[0] == tmp_path / "results"
    assert places[-1] == tmp_path / "other"


def test_too_little_room_is_refused_with_figures_and_a_little_too_little_is_said(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "10M") as disk:
        free = disk.free_bytes
        assert check_disk([DiskNeed(disk.path, {"checkpoints": free - RESERVE_BYTES})]) == []
        (doubt,) = check_disk([DiskNeed(disk.path, {"checkpoints": free})])
        assert "the same command resumes it" in doubt
        with pytest.raises(NoDiskError) as refused:
            check_disk([DiskNeed(disk.path, {"checkpoints": 7 * MIB}), DiskNeed(disk.path / "tmp", {"logs": 6 * MIB})])
        assert f"about 7.00 MiB in {disk.path} (checkpoints 7.00 MiB); 10.00 MiB are free; and about 6.00 MiB" in str(
            refused.value
        )
        # What an earlier run has written is there already.
        assert check_disk([DiskNeed(disk.path, {"checkpoints": 20 * MIB}, there_bytes=12 * MIB)]) == []
