"""A disk that is, or becomes, full ends a sweep in one sentence; with room, the same command finishes it."""

import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_disk import SmallDisk, small_disk

from command import read_until, run, start
from finished_results import child_runs, summary_of, sweep_folder
from patience import COMMAND_HANGS_AFTER_S, wait_until
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord, TrialStore

pytestmark = pytest.mark.ray

SWEEP = """\
name: full
corpus: {{path: {corpus}, holdout: 5%}}
tokenizer: {{kind: byte-bpe, vocabulary: 400}}
model: {{family: encoder, layers: 1, width: 32, heads: 2, sequence_length: 32}}
objective: {{masked_lm: {{}}}}
training: {{batch_size: 16, micro_batch_size: 16}}
search: {{training.learning_rate: {{choice: [2e-3, 4e-3]}}}}
searcher: {{method: grid}}
early_stopping: {{method: none}}
budget: {{trials: 2, tokens_per_trial: {tokens}}}
evaluation: {{points: 4}}
resources: {{concurrent_trials: 1, checkpoint_every_s: 0.5}}
"""
NO_ROOM = re.compile(
    r"pretune: (?P<place>\S+): the disk is full: ((?P<needed>[\d.]+ \w+) are needed, )?(?P<free>[\d.]+ \w+) are free\. "
    r"Make room there: the rest of the sweep needs about (?P<rest>[\d.]+ \w+)\. Then the same command resumes the "
    "sweep: pretune sweep "
)
KIB = 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "60M") as mounted:
        yield mounted


def write_sweep(folder: Path, *, tokens: str = "40k") -> Path:
    """A sweep of two trials on a small corpus; neither lies on the small disk."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(f"line {n} tells of {n % 7} apples and {n * n % 101} pears" for n in range(4000)))
    file = folder / "full.yaml"
    file.write_text(SWEEP.format(corpus=corpus, tokens=tokens))
    return file


def records_of(results: Path) -> list[TrialRecord]:
    return TrialStore(sweep_folder(results, "full") / "trials").load_all()


@contextmanager
def watched(disk: SmallDisk, most: list[int]) -> Iterator[None]:
    """Note the most bytes that are used on a disk in the block."""
    ends = threading.Event()

    def watch() -> None:
        while not ends.wait(0.01):
            most[0] = max(most[0], disk.used_bytes)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        ends.set()
        watching.join()


def check_that_it_resumes(file: Path, results: Path) -> None:
    """The same command, with room, ends the sweep; nothing is lost or doubled."""
    code, output = run("sweep", file, "--results", results)
    assert code == 0, output
    records = records_of(results)
    assert [record.outcome for record in records] == [Outcome.COMPLETED] * 2
    assert summary_of(results, "full")["status"] == "finished"
    assert (sweep_folder(results, "full") / "best" / "model.safetensors").is_file()
    assert sorted(one.info.run_name for one in child_runs(results, "full")) == ["trial-0001", "trial-0002"]


@pytest.mark.slow
def test_a_disk_that_becomes_full_stops_the_sweep_and_with_room_the_same_command_ends_it(
    disk: SmallDisk, tmp_path: Path
) -> None:
    file, results = write_sweep(tmp_path), disk.path / "results"
    code, output = run("plan", file, "--no-measure", "--results", results, "--json")
    assert code == 0, output
    planned = json.loads(output.splitlines()[-1])["disk"][0]
    assert planned["place"] == str(results)
    process = start("sweep", file, "--results", results)
    output = read_until(process, "holdout loss")
    disk.fill(leave=900 * KIB)
    rest, _ = process.communicate(timeout=COMMAND_HANGS_AFTER_S)
    output += rest
    assert process.returncode == 2, output
    assert "Traceback" not in output
    last = NO_ROOM.match(output.splitlines()[-1])
    assert last is not None, output
    assert last["place"] == str(sweep_folder(results, "full") / "trials" / "trial-0001")
    assert last["needed"].endswith("MiB")
    assert last["free"].endswith("KiB")
    (record,) = records_of(results)
    assert record.outcome is Outcome.INTERRUPTED
    assert record.tokens > 0
    assert summary_of(results, "full")["status"] == "interrupted"
    disk.make_room()
    most = [0]
    with watched(disk, most):
        check_that_it_resumes(file, results)
    # 0.97 was measured. A slower machine has more reports, and a disk holds files in blocks of 4 KiB.
    assert most[0] == pytest.approx(planned["needed_bytes"], rel=0.2), planned


@pytest.mark.slow
@pytest.mark.parametrize("size", ["2500k", "4M"])
def test_a_disk_that_is_too_small_is_refused_before_anything_is_trained(size: str, tmp_path: Path) -> None:
    file = write_sweep(tmp_path)
    with small_disk(tmp_path / "disk", size) as disk:
        code, output = run("sweep", file, "--results", disk.path)
        assert code == 2, output
        assert "Traceback" not in output
        assert "starts" not in output
        assert output.splitlines()[-1].startswith("pretune: ")
        assert " are free" in output.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("leave", [0, 8 * KIB])
def test_a_disk_without_room_for_a_record_stops_the_sweep_as_well(leave: int, disk: SmallDisk, tmp_path: Path) -> None:
    file, results = write_sweep(tmp_path, tokens="200k"), disk.path / "results"
    process = start("sweep", file, "--results", results)
    read_until(process, "holdout loss")
    disk.fill(leave=leave)
    output, _ = process.communicate(timeout=COMMAND_HANGS_AFTER_S)
    assert process.returncode == 2, output
    assert "Traceback" not in output
    assert NO_ROOM.match(output.splitlines()[-1]), output
    assert not [one for one in records_of(results) if one.outcome is Outcome.FAILED]
    disk.make_room()
    check_that_it_resumes(file, results)


@pytest.mark.slow
def test_a_full_disk_of_mlflow_alone_stops_nothing_and_is_named(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk.path / 'mlflow.db'}")
    file, results = write_sweep(tmp_path), tmp_path / "results"
    process = start("sweep", file, "--results", results)
    read_until(process, "starts")
    disk.fill(leave=0)
    output, _ = process.communicate(timeout=COMMAND_HANGS_AFTER_S)
    assert process.returncode == 5, output
    assert "Traceback" not in output
    assert "takes no records (the disk is full" in output
    assert "did not receive" in output
    disk.make_room()
    code, output = run("sweep", file, "--results", results)
    assert code == 0, output
    assert "nothing was trained" in output
    assert "did not receive" not in output
    with sqlite3.connect(disk.path / "mlflow.db") as database:
        names = database.execute("select name from runs where name like 'trial-%' and status = 'FINISHED'").fetchall()
    assert sorted(names) == [("trial-0001",), ("trial-0002",)]


@pytest.mark.slow
def test_a_temporary_folder_that_becomes_full_loses_nothing(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(disk.path))
    file, results = write_sweep(tmp_path, tokens="200k"), tmp_path / "results"
    process = start("sweep", file, "--results", results)
    read_until(process, "holdout loss")
    disk.fill(leave=0)
    output, _ = process.communicate(timeout=COMMAND_HANGS_AFTER_S)
    assert process.returncode in (0, 2), output
    assert "Traceback" not in output
    assert not [one for one in records_of(results) if one.outcome is Outcome.FAILED]
    disk.make_room()
    if process.returncode == 2:
        check_that_it_resumes(file, results)


@pytest.mark.slow
def test_a_database_that_is_locked_for_a_minute_in_a_sweep_misses_nothing(tmp_path: Path) -> None:
    file, results = write_sweep(tmp_path, tokens="1M"), tmp_path / "results"
    process = start("sweep", file, "--results", results)
    output = read_until(process, "starts")
    other = sqlite3.connect(results / "mlflow.db", isolation_level=None)
    wait_until(lambda: takes_lock(other), "the database was never free")
    time.sleep(60)
    other.execute("ROLLBACK")
    other.close()
    rest, _ = process.communicate(timeout=COMMAND_HANGS_AFTER_S)
    output += rest
    assert process.returncode == 0, output
    assert "takes no records (the database is locked)" in output
    assert "answers again" in output
    assert "did not receive" not in output
    runs = child_runs(results, "full")
    assert sorted(one.data.tags["pretune.outcome"] for one in runs) == ["COMPLETED", "COMPLETED"]


def takes_lock(database: sqlite3.Connection) -> bool:
    try:
        database.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    return True
