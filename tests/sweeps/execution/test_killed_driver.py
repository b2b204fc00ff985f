"""Drivers killed with SIGKILL at any moment, and two sweeps in one results folder, as processes of their own."""

import csv
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from command import processes_marked, run, start
from core.model_files.checkpoint import newest_checkpoint, read_progress
from patience import COMMAND_HANGS_AFTER_S
from sweep_examples import TINY
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.tracking.mlflow_store import EXPERIMENT

pytestmark = pytest.mark.ray

NUM_TRIALS = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One results folder for all sweeps of this module."""
    return tmp_path_factory.mktemp("results")


def write_file(results: Path, name: str, *, tokens: str, num_trials: int = NUM_TRIALS, stopping: str = "asha") -> Path:
    file = results / f"{name}.yaml"
    text = TINY.replace("name: tiny", f"name: {name}").replace("trials: 6", f"trials: {num_trials}")
    file.write_text(
        text.replace("30k", tokens)
        + "resources: {concurrent_trials: 1, checkpoint_every_s: 1}\n"
        + f"early_stopping: {{method: {stopping}}}\n"
    )
    return file


def store_of(results: Path, name: str) -> TrialStore | None:
    folders = list(results.glob(f"{name}-*/trials"))
    return TrialStore(folders[0]) if folders else None


def child_runs(results: Path, name: str) -> list[Any]:
    client = MlflowClient(f"sqlite:///{results / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    return list(client.search_runs([experiment.experiment_id], query))


def check_that_nothing_stands_twice(results: Path, name: str, num_trials: int = NUM_TRIALS) -> list[TrialRecord]:
    """A finished sweep: each trial once, everywhere."""
    store = store_of(results, name)
    assert store is not None
    records = store.load_all()
    assert all(record.is_done for record in records)
    names = [record.name for record in records]
    assert len(names) == num_trials
    assert len({str(record.settings) for record in records}) == num_trials
    with (store.folder.parent / "trials.csv").open(newline="") as file:
        assert sorted(row["trial"] for row in csv.DictReader(file)) == names
    runs = child_runs(results, name)
    assert sorted(one.info.run_name for one in runs) == names
    assert {one.info.run_name: one.data.tags["pretune.outcome"] for one in runs} == {
        record.name: str(record.outcome) for record in records
    }
    return records


def tokens_logged(log: Path) -> list[list[int]]:
    """Tokens of the reports that a trial's workers logged, for each time that it was started."""
    parts = log.read_text().split("starts: ")[1:]
    return [[round(float(found)) for found in re.findall(r" tokens=([0-9.e+]+)", part)] for part in parts]


def kill_at_random_moments(results: Path, file: Path, moments: random.Random) -> dict[str, int]:
    """Start a sweep again and again and kill it, then let it come to its end.

    Returns:
        Of each trial that was running, the tokens of its checkpoint when the driver was killed last.
    """
    name = file.stem
    known: dict[int, TrialRecord] = {}
    kept_tokens: dict[str, int] = {}
    # Later and later, so that what the kills before have cost is made up for; the last run is let to its end.
    for longest_s in (12.0, 25.0, 40.0):
        mark = f"{name}-{time.time_ns()}"
        process = start("sweep", file, "--results", results, mark=mark)
        time.sleep(moments.uniform(0.5, longest_s))
        process.kill()
        process.communicate()
        store = store_of(results, name)
        for record in store.load_all() if store else ():
            assert record.settings == known.get(record.number, record).settings
            assert not known.get(record.number, record).is_done or record == known.get(record.number, record)
            known[record.number] = record
            checkpoint = newest_checkpoint(store.folder_of(record)) if store else None
            if checkpoint is not None and not record.is_done:
                kept_tokens[record.name] = int(read_progress(checkpoint)["tokens"])
    # At once, while what the last one left behind may still run: the next one sees to that itself.
    code, output = run("sweep", file, "--results", results)
    assert code == 0, output
    assert processes_marked(mark) == []
    records = {record.number: record for record in check_that_nothing_stands_twice(results, name)}
    for number, before in known.items():
        assert records[number].settings == before.settings
        assert not before.is_done or records[number] == before
    return kept_tokens


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_trials_go_on_from_their_checkpoints_and_nothing_stands_twice(
    results: Path, seed: int
) -> None:
    file = write_file(results, f"killed-{seed}", tokens="200k")
    kept_tokens = kill_at_random_moments(results, file, random.Random(seed))
    store = store_of(results, file.stem)
    assert store is not None
    for trial, tokens in kept_tokens.items():
        last_start = tokens_logged(store.folder / trial / "log.txt")[-1]
        assert not last_start or last_start[0] > tokens, (trial, tokens, last_start)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 5))
def test_killed_at_random_moments_a_sweep_whose_trials_pause_goes_on_as_well(results: Path, seed: int) -> None:
    file = write_file(results, f"killed-{seed}", tokens="200k", stopping="trunk-and-branch")
    kill_at_random_moments(results, file, random.Random(seed))


@pytest.mark.slow
def test_two_sweeps_at_once_in_one_results_folder_do_not_disturb_each_other(results: Path) -> None:
    names = ("left", "right")
    processes = [
        start("sweep", write_file(results, name, tokens=tokens, num_trials=2), "--results", results)
        for name, tokens in zip(names, ("10k", "12k"), strict=True)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=COMMAND_HANGS_AFTER_S)
        assert process.returncode == 0, output
    for name in names:
        check_that_nothing_stands_twice(results, name, num_trials=2)
    # The corpus was prepared once, by one of them.
    assert len([path for path in (results / "prepared").iterdir() if not path.name.startswith(".")]) == 1
