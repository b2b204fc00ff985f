"""Mirrors of MLflow's runs: a tracker in memory, processes, and the real packages in their offline modes."""

import importlib.util
import json
import os
import signal
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from patience import wait_until
from sweep_examples import record, tiny_sweep
from sweeps.commands.known_errors import sentence_of
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import sweep_identity
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import LOSS, TrialRecord, TrialStore
from sweeps.settings.sweep_file import dump_sweep
from sweeps.tracking.final_values import FINAL_LOSS, final_values
from sweeps.tracking.mirror_process import Mirror, follow
from sweeps.tracking.mirror_runs import RunName
from sweeps.tracking.mirrors import MirrorError, Mirrors, check_mirrors
from sweeps.tracking.run_contents import report_metrics

NUM_REPORTS = 4


class Sweep:
    """A sweep's folder, written as the ledger writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tiny-12345678"
        (self.folder / "mirrors/memory").mkdir(parents=True)
        self.store = TrialStore(self.folder / "trials")

    def report(self, number: int, *steps: int, **changes: Any) -> TrialRecord:
        one = record(number, None, started_at="2026-01-01T00:00:00+00:00", **changes)
        for step in steps:
            self.store.append_report(one, {"tokens": 1000.0 * step, LOSS: 5.0 + number - step / 2, "train/rate": 0.5})
        one = one.model_copy(update={"tokens": 1000 * max(steps, default=0)})
        self.store.save(one)
        return one

    def end(self, one: TrialRecord, outcome: Outcome, at: str = "2026-01-01T00:01:00+00:00") -> TrialRecord:
        loss = {LOSS: 4.0} if outcome is Outcome.COMPLETED else {}
        ended = one.model_copy(
            update={"outcome": outcome, "ended_at": at, "reason": "in words", "metrics": loss, "paused_at": None}
        )
        self.store.save(ended)
        return ended


class Memory:
    """A tracker that keeps what it gets, and refuses what a real one would refuse."""

    def __init__(self, most_open: int = 9, *, refuses: str = "") -> None:
        self.most_open, self._refuses = most_open, refuses
        self.rows: dict[str, list[tuple[int, dict[str, float]]]] = defaultdict(list)
        self.finals_of: dict[str, dict[str, float]] = {}
        self.names: dict[str, RunName] = {}
        self.opened: list[str] = []
        self.failures: dict[str, str] = {}
        self._open: set[str] = set()

    def open(self, run: RunName) -> None:
        if run.trial == self._refuses:
            raise ConnectionError(f"no route for {run.trial}")
        self._open.add(run.id)
        assert len(self._open) <= self.most_open
        self.names[run.id] = run
        self.opened.append(run.id)

    def log(self, run_id: str, values: Mapping[str, float], *, step: int) -> None:
        assert run_id in self._open
        assert all(step > before for before, _ in self.rows[run_id]), "a step comes once, in order"
        self.rows[run_id].append((step, dict(values)))

    def finals(self, run_id: str, values: Mapping[str, float], *, step: int) -> None:
        assert run_id in self._open
        assert all(step >= before for before, _ in self.rows[run_id])
        self.finals_of[run_id] = dict(values)

    def close(self, run_id: str, *, failure: str = "") -> None:
        self._open.remove(run_id)
        self.failures[run_id] = failure


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def mirror_of(sweep: Sweep, runs: Memory) -> Mirror:
    return Mirror(sweep.folder, sweep.folder / "mirrors/memory", runs)


def test_a_run_has_the_name_the_settings_and_each_report_once_over_pauses_and_restarts(sweep: Sweep) -> None:
    runs = Memory()
    first = mirror_of(sweep, runs)
    sweep.report(1, 1, 2)
    first.bring(1)
    first.bring(1)
    sweep.report(1, 3, paused_at=3000)
    first.bring(1)
    again = mirror_of(sweep, runs)  # Another process, for the same sweep resumed.
    assert again.missing() == []
    one = sweep.report(1, 4)
    assert again.missing() == ["trial-0001"]
    again.bring(1)
    ended = sweep.end(one, Outcome.COMPLETED)
    again.bring(1)
    again.bring(1)
    (run_id,) = runs.names
    assert runs.names[run_id] == RunName(run_id, "trial-0001", "tiny-12345678", {"training.learning_rate": 0.001})
    assert runs.rows[run_id] == [
        (1000 * step, {LOSS: 6.0 - step / 2, "train/rate": 0.5}) for step in range(1, NUM_REPORTS + 1)
    ]
    assert runs.finals_of[run_id] == final_values(ended)
    assert runs.finals_of[run_id][FINAL_LOSS] == 4.0
    assert runs.opened == [run_id, run_id], "a pause closes the run, and the next leg continues it"
    assert again.missing() == []


def test_an_interrupted_trial_continues_its_run_and_a_retried_one_gets_another(sweep: Sweep) -> None:
    runs = Memory()
    mirror = mirror_of(sweep, runs)
    sweep.end(sweep.report(1, 1), Outcome.INTERRUPTED)
    mirror.bring(1)
    sweep.end(sweep.report(1, 2), Outcome.FAILED, at="2026-01-01T00:02:00+00:00")
    mirror.bring(1)
    (first,) = runs.names
    assert [step for step, _ in runs.rows[first]] == [1000, 2000]
    assert runs.failures[first] == "in words"
    sweep.store.set_aside(sweep.store.load_all()[0])
    again = sweep.report(1, 1, 2, earlier_attempts=1)
    sweep.end(again, Outcome.COMPLETED)
    mirror.bring(1)
    second = next(run_id for run_id in runs.names if run_id != first)
    assert runs.names[second].trial == "trial-0001"
    assert [step for step, _ in runs.rows[second]] == [1000, 2000]
    assert mirror.missing() == []


def test_a_tracker_with_one_open_run_gets_trials_that_train_side_by_side_one_after_the_other(sweep: Sweep) -> None:
    runs = Memory(most_open=1)
    mirror = mirror_of(sweep, runs)
    one, two = sweep.report(1, 1), sweep.report(2, 1)
    assert (mirror.bring(1), mirror.bring(2)) == (True, False)
    sweep.end(two, Outcome.COMPLETED)
    assert mirror.bring(2)
    sweep.report(1, 2)
    sweep.end(one.model_copy(update={"tokens": 2000}), Outcome.COMPLETED)
    assert mirror.bring(1)
    assert [[step for step, _ in rows] for rows in runs.rows.values()] == [[1000, 2000], [1000]]
    assert mirror.missing() == []


def test_a_run_that_its_tracker_refuses_is_named_once_and_counted_and_the_others_come(sweep: Sweep) -> None:
    runs = Memory(refuses="trial-0002")
    for number in (1, 2, 3):
        sweep.end(sweep.report(number, 1), Outcome.COMPLETED)
    told: list[dict[str, object]] = []
    reading, writing = os.pipe()
    os.write(writing, b"2\n2\n")
    os.close(writing)
    follow(mirror_of(sweep, runs), reading, told.append)
    os.close(reading)
    assert told == [{"failed": "no route for trial-0002"}, {"missing": ["trial-0002"]}]
    assert sorted(run.trial for run in runs.names.values()) == ["trial-0001", "trial-0003"]


def test_a_damaged_position_is_no_fault(sweep: Sweep) -> None:
    sweep.end(sweep.report(1, 1), Outcome.COMPLETED)
    for text in ("{", "[]", '{"trial-0001": 7}', '{"trial-0001": {"tokens": "x"}}'):
        (sweep.folder / "mirrors/memory/position.json").write_text(text)
        assert mirror_of(sweep, Memory()).missing() == ["trial-0001"]


@pytest.mark.parametrize("names", [("wandb",), ("tensorboard", "wandb", "swanlab")])
def test_mirrors_without_their_packages_are_refused_with_the_command_that_brings_them(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MirrorError) as refused:
        check_mirrors(names)
    packages = " ".join(name for name in names if name != "tensorboard")
    assert f"-m pip install {packages};" in str(refused.value)
    assert sentence_of(refused.value) == str(refused.value)
    check_mirrors(("tensorboard",))


def test_a_folder_with_the_files_of_a_tracker_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb/offline-run-1").mkdir(parents=True)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MirrorError):
        check_mirrors(["wandb"])


def test_a_mirror_in_the_file_leaves_its_identity_and_is_written_only_if_named() -> None:
    plain, mirrored = tiny_sweep(), tiny_sweep("tracking.mirror=[wandb, tensorboard]")
    assert sweep_identity(plain, "x") == sweep_identity(mirrored, "x")
    assert "tracking" not in dump_sweep(plain)
    assert "tracking:\n  mirror:\n  - wandb\n  - tensorboard\n" in dump_sweep(mirrored)
    with pytest.raises(ValueError, match="twice"):
        tiny_sweep("tracking.mirror=[wandb, wandb]")


def test_a_mirror_whose_process_cannot_begin_costs_its_listener_nothing_and_is_named_once(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the package its import fails, with it the mode does.
    monkeypatch.setenv("WANDB_MODE", "no such mode")
    said: list[str] = []
    mirrors = Mirrors(["tensorboard", "wandb"], sweep.folder, say=said.append)
    for number in range(1, 4):
        one = sweep.report(number, 1)
        mirrors.on_event(TrialEvent.REPORT, one, None)
        mirrors.on_event(TrialEvent.ENDED, sweep.end(one, Outcome.COMPLETED), None)
    counted = mirrors.close()
    failures = [line for line in said if "Training continues" in line]
    assert len(failures) == 1
    assert failures[0].startswith("mirror   wandb: ")
    assert counted["wandb"] >= 1


BLOCK_BYTES, HEADER_BYTES = 32_768, 7
"""Of the log format of LevelDB, in which both packages write."""


def log_records(file: Path) -> Iterator[bytes]:
    """The records of a log: chunks of checksum, length, type (1 whole, 2 first, 3 middle, 4 last), in blocks."""
    data, at, record = file.read_bytes(), HEADER_BYTES, b""
    while at + HEADER_BYTES <= len(data):
        room = BLOCK_BYTES - at % BLOCK_BYTES
        if room < HEADER_BYTES:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += HEADER_BYTES
        record = data[at : at + length] if kind in (1, 2) else record + data[at : at + length]
        at += length
        if kind in (1, 4):
            yield record


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SWANLAB_MODE", "offline")


Rows = dict[int, dict[str, float]]


def wandb_rows(folder: Path) -> tuple[Rows, list[Any]]:
    """All parts of the only run, as W&B reads them: values by step, and its headers."""
    from wandb.proto import wandb_internal_pb2  # type: ignore[import-not-found]

    rows: Rows = {}
    headers = []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for data in log_records(file):
            one = wandb_internal_pb2.Record()
            one.ParseFromString(data)
            if one.WhichOneof("record_type") == "run":
                headers.append(one.run)
            if one.WhichOneof("record_type") == "history":
                items = one.history.item
                values = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in items}
                step = values.pop("_step")
                rows[step] = {name: value for name, value in values.items() if not name.startswith("_")}
    return rows, headers


def swanlab_rows(folder: Path) -> tuple[Rows, list[Any]]:
    """All parts of the only run, as SwanLab reads them: values by step, and its headers."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record  # type: ignore[import-not-found]

    rows: Rows = {}
    headers = []
    for file in sorted(folder.glob("run-*/run-*.swanlab")):
        for data in log_records(file):
            one = Record()
            one.ParseFromString(data)
            if one.HasField("start"):
                headers.append(one.start)
            if one.HasField("scalar"):
                rows.setdefault(one.scalar.step, {})[one.scalar.key] = one.scalar.value.number
    return rows, headers


def named(headers: list[Any]) -> Iterator[tuple[str, str, str, str]]:
    """Id, name, project and group of each part."""
    for one in headers:
        if hasattr(one, "run_group"):
            yield one.run_id, one.display_name, one.project, one.run_group
        else:
            yield one.id, one.name, one.project, one.group


needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="no W&B (pip install -c constraints.txt -e .[mirrors])"
)
needs_swanlab = pytest.mark.skipif(
    importlib.util.find_spec("swanlab") is None, reason="no SwanLab (pip install swanlab, in another environment)"
)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "read"),
    [
        pytest.param("wandb", wandb_rows, marks=needs_wandb),
        pytest.param("swanlab", swanlab_rows, marks=needs_swanlab),
    ],
)
def test_the_real_tracker_has_the_names_and_steps_of_mlflow_though_its_process_was_killed_and_the_sweep_resumed(
    sweep: Sweep, offline: None, name: str, read: Any
) -> None:
    said: list[str] = []
    folder = sweep.folder / "mirrors" / name
    mirrors = Mirrors([name], sweep.folder, say=said.append)
    mirrors.on_event(TrialEvent.PAUSED, sweep.report(1, 1, 2, paused_at=2000), None)
    wait_until(lambda: (folder / "position.json").exists(), f"{name} brought nothing: {said}")
    process = mirrors._processes[0]._process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    mirrors.on_event(TrialEvent.REPORT, sweep.report(1, 3), None)
    assert mirrors.close() == {name: 1}
    assert len(said) == 1
    assert said[0].startswith(f"mirror   {name}: its process ended with -9. Training continues")
    # The sweep is resumed: a new process.
    mirrors = Mirrors([name], sweep.folder, say=said.append)
    ended = sweep.end(sweep.report(1, 4), Outcome.COMPLETED)
    mirrors.on_event(TrialEvent.ENDED, ended, None)
    assert mirrors.close() == {name: 0}
    assert len(said) == 1
    rows, headers = read(folder)
    assert len(headers) == 2
    assert set(named(headers)) == {("12345678_0001", "trial-0001", "pretune", "tiny-12345678")}
    expected: Rows = {}
    for report in sweep.store.reports(ended):
        for metric in report_metrics(ended, report):
            expected.setdefault(metric.step, {})[metric.key] = metric.value
    found = {step: {key: values[key] for key in expected[step]} for step, values in rows.items()}
    assert found == expected
