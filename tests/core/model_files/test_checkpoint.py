"""A checkpoint is whole or not there, and a run killed at any moment ends as if nothing had happened."""

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_corpus import VOCABULARY
from small_disk import small_disk
from small_runs import TOKENS_PER_STEP, final_weights, small_run, train

from core.model_files.checkpoint import (
    best_checkpoint,
    model_tensors,
    newest_checkpoint,
    read_progress,
    restore,
    save_best,
    save_checkpoint,
)
from core.models.language_model import LanguageModel
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.run_config import RunConfig
from core.settings.training_config import TrainingConfig
from core.step.optimizer import build_optimizer
from data_pipeline.files.disk_room import RESERVE_BYTES, NoRoomError

torch.set_num_threads(1)


def model_and_optimizer(*, width: int = 16, seed: int = 0) -> tuple[LanguageModel, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = build_model(ModelConfig(layers=1, width=width, heads=2, sequence_length=8), VOCABULARY.size)
    optimizer = build_optimizer(model, TrainingConfig(), tokens_per_step=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def tensors_of(model: LanguageModel, optimizer: torch.optim.AdamW) -> list[torch.Tensor]:
    states = [optimizer.state[parameter] for parameter in model.parameters()]
    return [*model_tensors(model).values(), *(tensor for state in states for tensor in state.values())]


def test_restored_tensors_and_progress_are_those_saved(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    saved = save_checkpoint(tmp_path, model, optimizer, {"tokens": 7}, step=3)
    other = model_and_optimizer(seed=1)
    assert restore(saved, *other) == {"tokens": 7}
    pairs = zip(tensors_of(model, optimizer), tensors_of(*other), strict=True)
    assert all(torch.equal(one, restored) for one, restored in pairs)


def test_only_the_newest_checkpoint_stays(tmp_path: Path) -> None:
    for step in (9, 10):
        save_checkpoint(tmp_path, *model_and_optimizer(), {}, step=step)
        save_best(tmp_path, model_and_optimizer()[0], {"loss": 1.0}, step=step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-000000000010", "step-000000000010"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "progress.json"])
@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_newest_whole_checkpoint_is_found_behind_a_damaged_one(file: str, damage: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, *model_and_optimizer(), {"tokens": 1}, step=1)
    (tmp_path / "step-000000000001").rename(tmp_path / "kept")
    damaged = save_checkpoint(tmp_path, *model_and_optimizer(), {"tokens": 2}, step=2) / file
    (tmp_path / "kept").rename(tmp_path / "step-000000000001")
    content = damaged.read_bytes()
    damaged.unlink()
    damaged.write_bytes(content[: len(content) // 2]) if damage == "cut short" else None
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert read_progress(found) == {"tokens": 1}


def test_folder_without_checkpoint_has_no_newest(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nothing here") is None
    assert best_checkpoint(tmp_path) is None


def test_checkpoint_of_another_model_is_refused_by_name_and_shape(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, *model_and_optimizer(width=16), {}, step=1)
    with pytest.raises(ValueError, match=r"tokens.weight is \(61, 16\) there and \(61, 32\) here"):
        restore(saved, *model_and_optimizer(width=32))


def test_left_over_of_a_killed_writer_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".writing-step-000000000007").mkdir()
    (tmp_path / ".writing-step-000000000007" / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, *model_and_optimizer(), {}, step=8)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000008"]


def test_a_checkpoint_without_room_is_refused_and_the_one_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", "4M") as disk:
        folder = disk.path / "trial"
        state = model_and_optimizer(width=128)
        size = sum(file.stat().st_size for file in save_checkpoint(folder, *state, {"step": 1}, step=1).iterdir())
        disk.fill(leave=size)  # Enough for the checkpoint, and not for what is written after it.
        with pytest.raises(NoRoomError) as found:
            save_checkpoint(folder, *state, {"step": 2}, step=2)
        assert found.value.filename == str(folder)
        assert found.value.needed_bytes == pytest.approx(size + RESERVE_BYTES, rel=0.01)
        assert found.value.free_bytes == disk.free_bytes
        # Somebody else takes the room after the check.
        monkeypatch.setattr("core.model_files.checkpoint.check_room", lambda *_: None)
        disk.fill(leave=size // 2)
        with pytest.raises(NoRoomError) as found:
            save_checkpoint(folder, *state, {"step": 2}, step=2)
        assert found.value.needed_bytes == pytest.approx(size, rel=0.01)
        assert [path.name for path in folder.iterdir()] == ["step-000000000001"]
        checkpoint = newest_checkpoint(folder)
        assert checkpoint is not None
        assert read_progress(checkpoint) == {"step": 1}
        disk.make_room()
        assert save_checkpoint(folder, *state, {"step": 2}, step=2).name == "step-000000000002"


def save_and_die_at(event_number: int, folder: Path, step: int) -> bool:
    """Save a checkpoint in a process that kills itself at one of its file operations; whether it had fewer."""
    state = model_and_optimizer(seed=step)
    child = os.fork()
    if child == 0:
        seen = itertools.count(1)

        def die(event: str, arguments: tuple[Any, ...]) -> None:
            is_ours = any(str(folder) in str(argument) for argument in arguments)
            if event in FILE_EVENTS and is_ours and next(seen) == event_number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        save_checkpoint(folder, *state, {"step": step}, step=step)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"saving failed by itself: status {status}"
    return status == 0


FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.listdir", "os.scandir", "shutil.rmtree"}


@pytest.mark.long
def test_writer_killed_at_any_file_operation_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, *model_and_optimizer(seed=0), {"step": 0}, step=0)
    last, found = 0, [0]
    for event_number in itertools.count(1):
        is_done = save_and_die_at(event_number, tmp_path, step=event_number)
        checkpoint = newest_checkpoint(tmp_path)
        assert checkpoint is not None
        step = read_progress(checkpoint)["step"]
        assert step in (last, event_number), "neither the one before nor the new one"
        other = model_and_optimizer(seed=-1)
        restore(checkpoint, *other)
        expected = tensors_of(*model_and_optimizer(seed=step))
        assert all(torch.equal(one, two) for one, two in zip(tensors_of(*other), expected, strict=True))
        last = step
        found.append(step)
        if is_done:
            break
    # Killed before the rename the old one stands, after it the new one; both were met.
    assert found[1] == 0
    assert found[-2:] == [event_number - 1, event_number]
    assert len(found) > 15


def newest_step(folder: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("step-*")), default=0)


def run_killed_after(
    num_checkpoints: int, seconds: float, run: RunConfig, folder: Path, arguments: dict[str, Any]
) -> bool:
    """Train in a process that is killed some time after it wrote some checkpoints; whether it had finished before.

    Time alone would leave a slow processor no progress, and a fast one no kill.
    """
    before = newest_step(folder)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(run, folder, **arguments)
            status = 0
        finally:
            os._exit(status)
    ended, status = 0, 0
    while not ended and newest_step(folder) < before + num_checkpoints:
        time.sleep(0.001)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the run failed by itself: status {status}"
    return status == 0


POINTS = [number * TOKENS_PER_STEP for number in range(0, 60, 7)]


@pytest.mark.long
@pytest.mark.parametrize(
    ("seed", "num_steps"), [(0, 40), *(pytest.param(seed, 60, marks=pytest.mark.slow) for seed in range(1, 8))]
)
def test_run_killed_at_random_moments_ends_bit_for_bit_as_if_it_had_not_been(
    seed: int, num_steps: int, tmp_path: Path
) -> None:
    run = small_run(family="encoder", tokens=num_steps * TOKENS_PER_STEP, micro_batch_size=5)
    whole = train(run, tmp_path / "whole", evaluate_at_tokens=POINTS)
    # A checkpoint after every step: writing takes about as long as training, so kills meet both.
    arguments = {"evaluate_at_tokens": POINTS, "checkpoint_every_s": 0.0}
    rng = random.Random(seed)
    num_kills, left_overs = 0, 0
    while not run_killed_after(rng.randint(0, 6), rng.uniform(0.0, 0.05), run, tmp_path / "killed", arguments):
        num_kills += 1
        left_overs += any((tmp_path / "killed").glob(".writing-*"))
        assert num_kills < 100, "no progress between kills"
    assert num_kills >= 1
    assert final_weights(tmp_path / "killed") == final_weights(tmp_path / "whole")
    best, best_of_whole = best_checkpoint(tmp_path / "killed"), best_checkpoint(tmp_path / "whole")
    assert best is not None
    assert best_of_whole is not None
    assert best.name == best_of_whole.name
    assert train(run, tmp_path / "killed").metrics == whole.metrics
    print(f"{num_kills} kills, {left_overs} of them while a checkpoint was written")
