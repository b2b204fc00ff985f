"""The largest micro-batch against real runs under a budget and against exhaustive search; and the words."""

import pytest
import torch
from full_rows import a_run, take_steps

from core.memory.memory_limit import memory_limit
from core.memory_prediction import peak_memory
from core.memory_prediction.memory_trace import MemoryTrace, RunShape, trace_steps
from core.memory_prediction.peak_memory import WorkerSetup, how_to_fit, largest_micro_batch, predict_memory
from core.settings.run_config import RunConfig
from core.step.optimizer_step import StepOutOfMemory, StepResult
from data_pipeline.schema.settings import format_bytes

CPU = torch.device("cpu")
VOCABULARY_SIZE = 3000
DECODER = {"family": "decoder"}
MODERN = {"form": "modern"}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check_largest(run: RunConfig, *, memory_bytes: int) -> None:
    """It runs under the budget, the next one does not."""
    largest = largest_micro_batch(run, VOCABULARY_SIZE, memory_bytes=memory_bytes)
    assert 1 <= largest < run.training.batch_size, largest
    for micro_batch_size, outcome in ((largest, StepResult), (largest + 1, StepOutOfMemory)):
        with memory_limit(memory_bytes, CPU):
            result = take_steps(run, VOCABULARY_SIZE, micro_batch_size=micro_batch_size)
        assert isinstance(result, outcome), f"micro-batch {micro_batch_size}, largest {largest}: {result}"


def bytes_between(run: RunConfig, micro_batch_size: int, part_of_next: float) -> int:
    """A budget that holds a micro-batch and a part of what one row more takes."""
    this, following = (
        predict_memory(run, VOCABULARY_SIZE, micro_batch_size=size).peak_bytes
        for size in (micro_batch_size, micro_batch_size + 1)
    )
    return this + int(part_of_next * (following - this))


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "micro_batch_size", "part_of_next"),
    [
        pytest.param({}, 3, 0.9, id="roberta-3"),
        *(
            pytest.param(changes, size, part, id=f"{name}-{size}-{part}", marks=pytest.mark.slow)
            for name, changes in {
                "roberta": {},
                "modern": MODERN,
                "decoder": DECODER | {"kv_heads": 2},
                "mixture": DECODER | {"feed_forward": "moe"},
                "dropout": {"dropout": 0.1},
                "checkpointing": {"activation_checkpointing": True},
                "bf16": {"precision": "bf16"},
                "long rows": {"sequence_length": 160},
            }.items()
            for size, part in ((1, 0.9), (6, 0.0), (9, 0.9))
        ),
    ],
)
def test_the_largest_micro_batch_runs_under_the_budget_and_the_next_does_not(changes, micro_batch_size, part_of_next):
    run = a_run(batch_size=24, **changes)
    check_largest(run, memory_bytes=bytes_between(run, micro_batch_size, part_of_next))


def test_the_whole_batch_is_the_largest_where_memory_is_plenty():
    assert largest_micro_batch(a_run(), VOCABULARY_SIZE, memory_bytes=2**40) == 16
    assert largest_micro_batch(a_run(), VOCABULARY_SIZE, memory_bytes=2**40, setup=WorkerSetup(num_workers=3)) == 6


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [48, 3072])
def test_traces_for_the_largest_micro_batch_are_few_however_large_the_batch(batch_size, monkeypatch):
    traced: list[RunShape] = []

    def counted(shape: RunShape) -> MemoryTrace:
        traced.append(shape)
        return trace_steps(shape)

    monkeypatch.setattr(peak_memory, "trace_steps", counted)
    run = a_run(batch_size=batch_size, layers=1, width=32, heads=2, sequence_length=32)
    needed = predict_memory(run, 1001, micro_batch_size=20).peak_bytes
    assert largest_micro_batch(run, 1001, memory_bytes=needed) == 20
    assert len(traced) <= 16, len(traced)


def test_no_micro_batch_fits_into_less_than_the_parameters():
    assert largest_micro_batch(a_run(), VOCABULARY_SIZE, memory_bytes=2**20) == 0


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_largest_micro_batch_is_that_of_exhaustive_search(num_workers):
    # A vocabulary at which the head changes its number of chunks within the batch, so the peak rises and falls.
    run = a_run(batch_size=22, layers=1, width=64, sequence_length=512)
    vocabulary_size = 40_000
    peaks = {
        size: predict_memory(
            run, vocabulary_size, micro_batch_size=size, setup=WorkerSetup(num_workers=num_workers)
        ).peak_bytes
        for size in range(1, 22 // num_workers + 1)
    }
    for budget_bytes in {peak + extra for peak in peaks.values() for extra in (-1, 0)}:
        found = largest_micro_batch(
            run, vocabulary_size, memory_bytes=budget_bytes, setup=WorkerSetup(num_workers=num_workers)
        )
        largest = max((size for size, peak in peaks.items() if peak <= budget_bytes), default=0)
        shown = {size: format_bytes(peak) for size, peak in peaks.items()}
        assert found == largest, (format_bytes(budget_bytes), shown)


@pytest.mark.slow
def test_on_a_device_the_largest_micro_batch_fits_and_wastes_little():
    run = a_run(batch_size=48, layers=2, width=512, heads=8, sequence_length=512, precision="bf16")
    for budget_bytes in (2**29, 3 * 2**28, 2**30):
        found = largest_micro_batch(run, 8000, memory_bytes=budget_bytes, setup=WorkerSetup(device_type="cuda"))
        assert 1 <= found < 48
        here, above = (
            predict_memory(run, 8000, micro_batch_size=size, setup=WorkerSetup(device_type="cuda")).peak_bytes
            for size in (found, found + 2)
        )
        assert here <= budget_bytes < above, (found, format_bytes(here), format_bytes(above))


# In words


@pytest.mark.long
def test_words_name_the_need_the_cures_and_the_largest_part():
    run = a_run(batch_size=32, micro_batch_size=32)
    checkpointed = run.with_overrides({"training.activation_checkpointing": True})
    needed, enough = (
        predict_memory(form, VOCABULARY_SIZE, micro_batch_size=32).peak_bytes for form in (run, checkpointed)
    )
    words = how_to_fit(run, VOCABULARY_SIZE, memory_bytes=enough)
    largest = largest_micro_batch(run, VOCABULARY_SIZE, memory_bytes=enough)
    assert words.startswith(f"needs {format_bytes(needed)} of {format_bytes(enough)}")
    assert f"fits with micro-batch {largest} or with activation checkpointing;" in words
    share = predict_memory(run, VOCABULARY_SIZE, micro_batch_size=32).share("activations")
    assert f"activations are {share:.0%}" in words


def test_words_say_what_is_needed_at_least_where_nothing_helps():
    words = how_to_fit(a_run(), VOCABULARY_SIZE, memory_bytes=2**20)
    assert "no micro-batch fits" in words
    assert "optimizer state alone take" in words


def test_words_are_short_where_the_run_fits():
    assert how_to_fit(a_run(micro_batch_size=4), VOCABULARY_SIZE, memory_bytes=2**30).endswith("of 1.00 GiB; fits")
