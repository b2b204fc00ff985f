import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hostile_values import BYTES, CHANGES, changed
from hypothesis import given, settings
from rich.console import Console

from data_pipeline.schema.user_errors import InputFault
from sweeps.records.results_folder import ResultsError, ended_sweeps, read_summary
from sweeps.records.sweep_lock import Holder, holder_in
from sweeps.report.baseline import read_baseline
from sweeps.report.compare_sweeps import compare_sweeps, print_comparison
from sweeps.settings.sweep_file import dump_sweep, load_sweep_file
from sweeps.trained_models.model_folder import prepared_of

CONFIGS = Path(__file__).parents[3] / "sweeps/configs"
HOLDER = {"pid": 7, "host": "a", "mark": "7-1.5", "beat": 3}
SUMMARY: dict[str, Any] = {
    "name": "random",
    "identity": "80924e5020576e0e",
    "status": "FINISHED",
    "best": {
        "trial": "trial-0001",
        "holdout_loss_nats_per_token": 6.5,
        "tokens": 1000,
        "tokens_per_s": 10.5,
        "training.learning_rate": 1e-3,
    },
    "outcomes": {"COMPLETED": 3},
    "training_s_by_outcome": {"COMPLETED": 1.5},
    "wall_s": 3.5,
    "data": {"folder": "/nowhere", "fingerprint": "abc"},
}


def contents(values: Any, change: Any) -> bytes:
    return change if isinstance(change, bytes) else json.dumps(changed(values, change)).encode()


def expect_a_holder_or_none(lock: bytes) -> None:
    holder = holder_in(lock)
    assert holder is None or (isinstance(holder.pid, int) and isinstance(holder.mark, str) and str(holder))


@settings(max_examples=200, derandomize=True)
@given(change=CHANGES | BYTES)
def test_random_lock_is_a_holder_or_none(change: Any) -> None:
    expect_a_holder_or_none(contents(HOLDER, change))


@pytest.mark.slow
@settings(max_examples=50_000)
@given(change=CHANGES | BYTES)
def test_any_lock_is_a_holder_or_none(change: Any) -> None:
    expect_a_holder_or_none(contents(HOLDER, change))


def test_lock_of_a_live_process_is_its_holder() -> None:
    assert holder_in(json.dumps(HOLDER).encode().ljust(512)) == Holder(7, "a", "7-1.5", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder whose summary.json a test may replace."""
    results = tmp_path_factory.mktemp("results") / "random-80924e50"
    results.mkdir()
    (results / "sweep.yaml").write_text(dump_sweep(load_sweep_file(CONFIGS / "quickstart.yaml")), encoding="utf-8")
    return results


def use_and_expect_only_our_errors(folder: Path, data: bytes) -> None:
    (folder / "summary.json").write_bytes(data)
    with suppress(InputFault):
        read_summary(folder)
    with suppress(InputFault):
        print_comparison(compare_sweeps(folder, folder), Console(file=io.StringIO()))
    with suppress(InputFault):
        read_baseline(str(folder), folder.parent)
    with suppress(InputFault):
        prepared_of(folder)
    assert len(ended_sweeps(folder.parent, "random")) <= 1


@settings(max_examples=60, derandomize=True)
@given(change=CHANGES | BYTES)
def test_random_summary_gives_only_our_errors(folder: Path, change: Any) -> None:
    use_and_expect_only_our_errors(folder, contents(SUMMARY, change))


@pytest.mark.slow
@settings(max_examples=10_000)
@given(change=CHANGES | BYTES)
def test_any_summary_gives_only_our_errors(folder: Path, change: Any) -> None:
    use_and_expect_only_our_errors(folder, contents(SUMMARY, change))


def test_whole_summary_is_compared_and_a_damaged_one_is_named_with_its_fault(folder: Path) -> None:
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    assert compare_sweeps(folder, folder).loss_difference_nats == 0
    (folder / "summary.json").write_text(json.dumps(SUMMARY | {"outcomes": {"COMPLETED": "x"}, "data": 3}))
    with pytest.raises(ResultsError, match=r"summary.json is damaged: it has data .* outcomes.COMPLETED"):
        compare_sweeps(folder, folder)
