"""Kept predictions equal fresh ones; keys cover all that a trace depends on; no file is trusted."""

import json
import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from full_rows import a_run
from hypothesis import given
from pydantic import BaseModel

from core.memory_prediction import kept_predictions
from core.memory_prediction.kept_predictions import (
    KeptPredictions,
    MemoryPrediction,
    key_of,
    predictions_kept_in,
    source_digest,
)
from core.memory_prediction.memory_trace import RunShape, trace_steps
from core.memory_prediction.peak_memory import WorkerSetup, predict_memory
from core.settings.model_config import ModelConfig
from core.settings.training_config import LoraConfig
from patience import HANGS_AFTER_S

ROOT = Path(__file__).parents[3]
SHAPE = RunShape(
    model=ModelConfig(layers=1, width=32, heads=2, sequence_length=16),
    vocabulary_size=100,
    num_classes=None,
    precision="fp32",
    is_checkpointed=False,
    lora=LoraConfig(),
    optimizer="adamw",
    micro_batch_size=2,
    local_rows=4,
    exchanges_gradients=False,
    predicted_per_row=3,
    has_document_ids=False,
    device_type="cpu",
)
PREDICTION = MemoryPrediction(100, {"activations": 60, "parameters": 40})


def traced_as(prediction: MemoryPrediction) -> Callable[[RunShape], MemoryPrediction]:
    return lambda _: prediction


def not_traced(shape: RunShape) -> MemoryPrediction:
    raise AssertionError(f"traced: {shape}")


def silent(words: str) -> None:
    raise AssertionError(f"said: {words}")


OF_A_CLASS = ("arguments", "class_digest", "allow_batch_statistics")
"""Settings that mean nothing without a class."""


def leaves(thing: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Paths of all fields, through nested settings."""
    names = list(type(thing).model_fields) if isinstance(thing, BaseModel) else [one.name for one in fields(thing)]
    for name in names:
        value = getattr(thing, name)
        if name in OF_A_CLASS:
            continue
        if isinstance(value, BaseModel):
            yield from leaves(value, *path, name)
        else:
            yield (*path, name)


def with_other(thing: Any, name: str, *rest: str) -> Any:
    """The same with another value of one field, which need not be valid."""
    value = getattr(thing, name)
    if rest:
        other = with_other(value, *rest)
    elif isinstance(value, bool):
        other = not value
    else:
        other = 7 if value is None else value + type(value)(1)
    return thing.model_copy(update={name: other}) if isinstance(thing, BaseModel) else replace(thing, **{name: other})


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # Of values that are not valid.
@pytest.mark.parametrize("path", list(leaves(SHAPE)), ids=".".join)
def test_each_field_of_a_shape_changes_the_key(path: tuple[str, ...]) -> None:
    assert key_of(with_other(SHAPE, *path)) != key_of(SHAPE)
    assert key_of(replace(SHAPE)) == key_of(SHAPE)


@pytest.mark.parametrize("changed", [{"class_digest": "b"}, {"arguments": {"width": 2}}, {"sequence_length": 9}])
def test_a_class_its_source_and_its_arguments_change_the_key(changed: dict[str, Any]) -> None:
    form = {"class": "mine.py:Mine", "class_digest": "a", "arguments": {"width": 1}}
    keys = {key_of(replace(SHAPE, model=ModelConfig.model_validate(form | more))) for more in ({}, changed)}
    assert len(keys) == 2


SHAPES = st.builds(
    replace,
    st.just(SHAPE),
    vocabulary_size=st.integers(1, 3),
    num_classes=st.none() | st.integers(1, 3),
    precision=st.sampled_from(["fp32", "bf16"]),
    is_checkpointed=st.booleans(),
    lora=st.none() | st.builds(LoraConfig, rank=st.integers(1, 2)),
    micro_batch_size=st.integers(1, 3),
    local_rows=st.integers(1, 3),
    predicted_per_row=st.integers(1, 3),
    has_document_ids=st.booleans(),
)


@given(SHAPES, SHAPES)
def test_only_equal_shapes_share_a_key(one: RunShape, other: RunShape) -> None:
    assert (key_of(one) == key_of(other)) == (one == other)


@contextmanager
def without_flash_attention() -> Iterator[None]:
    torch.backends.cuda.enable_flash_sdp(False)
    yield
    torch.backends.cuda.enable_flash_sdp(True)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def in_doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


STATES = [partial(torch.backends.mkldnn.flags, enabled=False), without_flash_attention, deterministic, in_doubles]


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # oneDNN's, of its flags.
@pytest.mark.parametrize("state", STATES)
def test_another_state_of_the_process_changes_the_key(state: Callable[[], AbstractContextManager[None]]) -> None:
    before = key_of(SHAPE)
    with state():
        other = key_of(SHAPE)
    assert other != before == key_of(SHAPE)


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (torch, "__version__", "2.99.0"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "another processor"),
        (platform, "machine", lambda: "another architecture"),
        (platform, "python_version", lambda: "3.99.0"),
    ],
)
def test_another_torch_python_or_processor_changes_the_key(
    owner: Any, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_of(SHAPE)
    monkeypatch.setattr(owner, name, value)
    assert key_of(SHAPE) != before


def test_other_source_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(SHAPE)
    monkeypatch.setattr(kept_predictions, "_TRACED_FOLDERS", ("core",))
    kept_predictions._our_source.cache_clear()
    other = key_of(SHAPE)
    kept_predictions._our_source.cache_clear()
    assert other != before


def test_a_change_in_the_source_changes_its_digest(tmp_path: Path) -> None:
    folder = tmp_path / "core" / "step"
    folder.mkdir(parents=True)
    first, second = folder / "first.py", folder / "second.py"

    def digest() -> str:
        return source_digest(tmp_path, [tmp_path / "core"])

    digests = [digest()]
    for content in (b"x = 1\n", b"x = 2\n"):
        first.write_bytes(content)
        digests.append(digest())
    first.rename(second)
    digests.append(digest())
    first.write_bytes(b"")
    digests.append(digest())
    assert len(set(digests)) == len(digests)
    (folder / "README.md").write_text("words")
    assert digest() == digests[-1]


def test_a_trace_runs_no_code_of_ours_whose_source_is_not_in_the_key() -> None:
    code = (
        "import sys\n"
        "from core.memory_prediction.peak_memory import predict_memory\n"
        "from core.settings.run_config import RunConfig\n"
        "for form in ({'family': 'decoder', 'feed_forward': 'moe'}, {'form': 'modern'}):\n"
        "    objective = 'causal_lm' if 'family' in form else 'masked_lm'\n"
        "    model = {'layers': 1, 'width': 32, 'heads': 2, **form}\n"
        "    run = {'model': model, 'objective': {objective: {}}, 'training': {'lora': {}}}\n"
        "    predict_memory(RunConfig.model_validate(run), 100, micro_batch_size=2)\n"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] in ('core', 'data_pipeline', 'sweeps')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    traced = done.stdout.split()
    assert "core.step.optimizer_step" in traced
    inside = ("core", "data_pipeline.schema", "data_pipeline.files", "data_pipeline.tokens")
    outside = [name for name in traced if not any(f"{name}.".startswith(f"{folder}.") for folder in inside)]
    assert outside == ["data_pipeline"]  # An empty package.


@pytest.mark.parametrize(
    ("changes", "setup"),
    [
        ({}, WorkerSetup()),
        ({"family": "decoder", "lora": {}, "precision": "bf16"}, WorkerSetup(num_workers=2)),
        ({"family": "decoder", "feed_forward": "moe"}, WorkerSetup(device_type="cuda", has_document_ids=True)),
    ],
)
def test_a_kept_prediction_equals_a_fresh_one(changes: dict[str, Any], setup: WorkerSetup, tmp_path: Path) -> None:
    run = a_run(layers=1, **changes)
    fresh = predict_memory(run, 503, micro_batch_size=4, setup=setup)
    found = []
    for _ in range(2):
        with predictions_kept_in(tmp_path / "predictions.json", say=silent):
            found.append(predict_memory(run, 503, micro_batch_size=4, setup=setup))
    assert len(json.loads((tmp_path / "predictions.json").read_text())["predictions"]) == 1
    for prediction in found:
        assert prediction == fresh
        assert list(prediction.parts) == list(fresh.parts)


def test_a_trace_does_not_depend_on_the_number_of_threads() -> None:
    # It is not in the key.
    shape, before = replace(SHAPE, precision="bf16"), torch.get_num_threads()
    peaks = []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        peaks.append(trace_steps(shape).peak())
    torch.set_num_threads(before)
    assert peaks[0] == peaks[1]


def test_outside_the_context_no_kept_prediction_is_used(tmp_path: Path) -> None:
    run, file = a_run(layers=1), tmp_path / "predictions.json"
    with predictions_kept_in(file, say=silent):
        fresh = predict_memory(run, 509, micro_batch_size=4)
    content = json.loads(file.read_text())
    ((key, _),) = content["predictions"].items()
    content["predictions"][key] = {"peak_bytes": 5, "parts": {"batch": 5}}
    file.write_text(json.dumps(content))
    with predictions_kept_in(file, say=silent):
        assert predict_memory(run, 509, micro_batch_size=4).peak_bytes == 5
    assert predict_memory(run, 509, micro_batch_size=4) == fresh


def with_entry(entry: object, *, version: object = 1) -> bytes:
    return json.dumps({"format_version": version, "predictions": {key_of(SHAPE): entry}}).encode()


DAMAGED = {
    "empty": b"",
    "cut off": with_entry({"peak_bytes": 5, "parts": {"batch": 5}})[:-9],
    "not UTF-8": b'{"format_version": 1, "predictions": "\xff"}',
    "nested": b"[" * 100_000,
    "long number": b'{"format_version": ' + b"1" * 5000 + b"}",
    "too large": b" " * (4 * 2**20) + b"{}",
    "a list": b"[]",
    "another format": with_entry({"peak_bytes": 5, "parts": {"batch": 5}}, version=2),
    "no predictions": b'{"format_version": 1, "predictions": [1]}',
    "a foreign key": b'{"format_version": 1, "predictions": {"cpu": {}}}',
    "a number": with_entry(5),
    "no parts": with_entry({"peak_bytes": 5}),
    "parts that do not add up": with_entry({"peak_bytes": 5, "parts": {"batch": 4}}),
    "an unknown part": with_entry({"peak_bytes": 5, "parts": {"\x1b[31mbatch": 5}}),
    "an unknown field": with_entry({"peak_bytes": 5, "parts": {"batch": 5}, "trusted": True}),
    "a negative part": with_entry({"peak_bytes": 5, "parts": {"batch": 6, "logits": -1}}),
    "a float": with_entry({"peak_bytes": 5.0, "parts": {"batch": 5}}),
    "a text": with_entry({"peak_bytes": "5", "parts": {"batch": 5}}),
    "a boolean": with_entry({"peak_bytes": True, "parts": {"batch": True}}),
    "nothing": with_entry({"peak_bytes": 0, "parts": {}}),
    "more than any machine has": with_entry({"peak_bytes": 2**63, "parts": {"batch": 2**63}}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_costs_one_line_and_is_replaced(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "predictions.json"
    file.write_bytes(content)
    said: list[str] = []
    kept = KeptPredictions(file, say=said.append)
    assert kept.prediction(SHAPE, traced_as(PREDICTION)) == PREDICTION
    kept.prediction(replace(SHAPE, local_rows=8), traced_as(PREDICTION))
    assert len(said) == 1
    assert said[0].startswith(str(file))
    assert said[0].isprintable()
    again = KeptPredictions(file, say=silent)
    assert again.prediction(SHAPE, not_traced) == PREDICTION
    assert again.prediction(replace(SHAPE, local_rows=8), not_traced) == PREDICTION


def test_a_pipe_in_place_of_the_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "predictions.json")
    kept = KeptPredictions(tmp_path / "predictions.json", say=silent)
    assert kept.prediction(SHAPE, traced_as(PREDICTION)) == PREDICTION


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("a file in place of the folder")
    said: list[str] = []
    kept = KeptPredictions(tmp_path / "memory" / "predictions.json", say=said.append)
    for rows in (4, 8):
        assert kept.prediction(replace(SHAPE, local_rows=rows), traced_as(PREDICTION)) == PREDICTION
    assert len(said) == 1
    assert "cannot be written" in said[0]


def test_the_newest_predictions_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "predictions.json"
    entry = {"peak_bytes": 5, "parts": {"batch": 5}}
    old = {f"{number:064x}": entry for number in range(2000)}
    file.write_text(json.dumps({"format_version": 1, "predictions": old}))
    KeptPredictions(file, say=silent).prediction(SHAPE, traced_as(PREDICTION))
    assert list(json.loads(file.read_text())["predictions"]) == [*list(old)[1:], key_of(SHAPE)]


def add_each(file: Path, first: int) -> None:
    kept = KeptPredictions(file, say=silent)
    for number in range(first, first + 20):
        kept.prediction(replace(SHAPE, vocabulary_size=number), traced_as(PREDICTION))


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "memory" / "predictions.json"
    forked = multiprocessing.get_context("fork")
    writers = [forked.Process(target=add_each, args=(file, 1000 * number)) for number in range(1, 5)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(HANGS_AFTER_S)
        assert writer.exitcode == 0
    kept = KeptPredictions(file, say=silent)
    for number in range(1, 5):
        for size in range(1000 * number, 1000 * number + 20):
            assert kept.prediction(replace(SHAPE, vocabulary_size=size), not_traced) == PREDICTION
