"""Results in an S3-compatible store: what goes there, what comes back, and a sweep that goes on from it elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import bucket_called
from pyarrow.fs import FileSelector, FileSystem

from command import ROOT
from patience import COMMAND_HANGS_AFTER_S, HANGS_AFTER_S, wait_until
from sweep_examples import TINY
from sweeps.commands.command_frame import results_location
from sweeps.records.folder_mirror import Mirror
from sweeps.records.outcomes import Outcome
from sweeps.records.remote_results import PART_FILE, ResultsAtUri, UriError, mirrored_trial
from sweeps.records.sweep_lock import SweepRunsAlreadyError
from sweeps.records.trial_records import TrialStore

_STEP = "trials/trial-0001/step-000000000007"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket, addressed as users do, by environment."""
    with bucket_called("results"):
        yield "s3://results"


def fill(folder: Path) -> dict[str, bytes]:
    """A sweep's folder in small; what of it is to be mirrored."""
    files = {
        "trials.csv": b"trial\n",
        "trials/trial-0001/trial.json": b"{}",
        "trials/trial-0001/reports.jsonl": b'{"tokens": 1}\n',
        f"{_STEP}/model.safetensors": bytes(5 << 20),
        f"{_STEP}/progress.json": b"{}",
    }
    for name, content in (files | {".lock": b"x", ".ray/state": b"x", "trials/trial-0001/.writing-1/a": b"x"}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return files


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_pushed_comes_back_equal_and_hidden_files_stay(bucket: str, tmp_path: Path) -> None:
    files = fill(tmp_path / "here")
    Mirror(tmp_path / "here", f"{bucket}/equal").push()
    there = Mirror(tmp_path / "there", f"{bucket}/equal")
    assert there.pull() == len(files)
    assert contents(tmp_path / "there") == files
    assert there.pull() == 0


def test_a_push_sends_what_changed_and_removes_what_is_gone(bucket: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    files = fill(here)
    mirror = Mirror(here, f"{bucket}/changes")
    mirror.push()
    shutil.rmtree(here / _STEP)
    with (here / "trials/trial-0001/reports.jsonl").open("ab") as reports:
        reports.write(b'{"tokens": 2}\n')
    mirror.push()
    Mirror(tmp_path / "there", f"{bucket}/changes").pull()
    expected = {name: content for name, content in files.items() if not name.startswith(_STEP)}
    expected["trials/trial-0001/reports.jsonl"] += b'{"tokens": 2}\n'
    assert contents(tmp_path / "there") == expected


def test_a_record_never_speaks_of_weights_that_are_not_there_yet(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    fill(here)
    mirror = Mirror(here, f"{bucket}/order")
    sent: list[str] = []
    output = Mirror._output

    def noting(self: Mirror, name: str) -> object:
        sent.append(name)
        if len(sent) == 1:  # The trial ends while its weights are on their way.
            (here / "trials/trial-0001/trial.json").write_bytes(b'{"outcome": "COMPLETED"}')
        return output(self, name)

    monkeypatch.setattr(Mirror, "_output", noting)
    mirror.push()
    assert sent[0] == f"{_STEP}/model.safetensors"
    assert sent[-2:] == ["trials/trial-0001/trial.json", "trials.csv"]
    # The record as it was before the weights were sent; the next push brings the new one.
    assert mirror.read("trials/trial-0001/trial.json") == b"{}"
    mirror.push()
    assert mirror.read("trials/trial-0001/trial.json") == b'{"outcome": "COMPLETED"}'


def test_a_store_that_goes_away_stops_nothing_and_gets_the_rest_when_it_is_back(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fill(tmp_path / "here")
    mirror, said = Mirror(tmp_path / "here", f"{bucket}/away"), list[str]()
    push = Mirror.push
    failures, taken = iter([OSError("no route to host\nmore")] * 3), threading.Event()

    def failing(self: Mirror) -> None:
        for failure in failures:
            raise failure
        push(self)
        taken.set()

    monkeypatch.setattr(Mirror, "push", failing)
    with mirror.following(say=said.append, every_s=0.05):
        assert taken.wait(HANGS_AFTER_S), "it was not tried again"
    assert said == [f"cannot upload results to {bucket}/away (no route to host); they are in {tmp_path / 'here'}"]
    assert Mirror(tmp_path / "there", f"{bucket}/away").pull() == len(files)


def results_at(folder: Path, uri: str) -> tuple[ResultsAtUri, list[str]]:
    said: list[str] = []
    return ResultsAtUri(folder, uri, say=said.append), said


def test_a_fresh_node_gets_the_sweep_back_and_the_newer_copy_wins(bucket: str, tmp_path: Path) -> None:
    uri = f"{bucket}/fresh"
    first, prepared = tmp_path / "first", tmp_path / "first/prepared/0123"
    prepared.mkdir(parents=True)
    (prepared / "manifest.json").write_text("{}")
    fill(first / "sweep-1")
    results, _ = results_at(first, uri)
    with results.following(first / "sweep-1", prepared):
        pass

    second = tmp_path / "second"
    results, said = results_at(second, uri)
    results.fetch_prepared(second / "prepared/0123")
    assert contents(second / "prepared") == {"0123/manifest.json": b"{}"}
    results.bring_back(second / "sweep-1")
    assert contents(second / "sweep-1") | {PART_FILE: b""} == fill(tmp_path / "expected") | {PART_FILE: b""}
    assert said == [f"results  6 files restored from {uri}/sweep-1"]
    with results.following(second / "sweep-1", second / "prepared/0123"):
        (second / "sweep-1/trials.csv").write_text("longer than before\n")

    # On the first node the older copy makes room; nothing of it is lost.
    results, _ = results_at(first, uri)
    results.bring_back(first / "sweep-1")
    assert (first / "sweep-1/trials.csv").read_text() == "longer than before\n"
    assert (first / ".superseded-1-sweep-1/trials.csv").read_bytes() == b"trial\n"
    # And the newer one stays where it is.
    results, said = results_at(second, uri)
    results.bring_back(second / "sweep-1")
    assert said == []


def test_a_sweep_that_runs_on_another_node_is_refused_by_its_pulse_at_the_uri(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{bucket}/pulse"
    results, said = results_at(tmp_path, uri)
    mirror = Mirror(tmp_path / "sweep-1", f"{uri}/sweep-1")
    holder = {"pid": 17, "host": "node-b", "mark": "17-1", "beat": 1}
    mirror.write("pulse.json", json.dumps(holder).encode())
    results.bring_back(tmp_path / "sweep-1", silence_s=0.3)
    assert "pid 17 on node-b gives no sign of life" in said[-1]

    read = Mirror.read

    def beating(self: Mirror, name: str) -> bytes | None:
        holder["beat"] = int(holder["beat"]) + 1
        self.write("pulse.json", json.dumps(holder).encode())
        return read(self, name)

    monkeypatch.setattr(Mirror, "read", beating)
    with pytest.raises(SweepRunsAlreadyError, match="pid 17 on node-b"):
        results.bring_back(tmp_path / "sweep-1", silence_s=5)


def test_a_worker_on_another_node_goes_on_from_checkpoints_at_the_uri_and_sends_its_own(
    bucket: str, tmp_path: Path
) -> None:
    uri = f"{bucket}/worker"
    fill(tmp_path / "driver")
    Mirror(tmp_path / "driver", uri).push()
    folder = tmp_path / "worker/trial-0001"
    with mirrored_trial(folder, f"{uri}/trials/trial-0001"):
        assert [path.name for path in folder.iterdir()] == ["step-000000000007"]
        shutil.copytree(folder / "step-000000000007", folder / "step-000000000009")
        # The driver alone writes records.
        (folder / "trial.json").write_bytes(b"not mine")
    trial = Mirror(tmp_path / "again", f"{uri}/trials/trial-0001")
    trial.pull()
    assert sorted(path.name for path in (tmp_path / "again").glob("step-*")) == [f"step-{n:012d}" for n in (7, 9)]
    assert (tmp_path / "again/trial.json").read_bytes() == b"{}"


def test_a_bucket_that_is_not_there_is_named_before_anything_starts(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(UriError, match=r"cannot write results to s3://nobodys/sweeps .*the bucket must exist"):
        results_at(tmp_path, "s3://nobodys/sweeps")


def test_results_go_to_a_folder_of_this_machine_that_a_uri_has_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, uri = results_location("s3://bucket/a/b")
    assert (folder, uri) == (Path.home() / "pretune/mirrored/bucket-a-b", "s3://bucket/a/b")
    assert results_location("file:///shared/my%20results") == (Path("/shared/my results"), None)
    monkeypatch.setenv("PRETUNE_RESULTS", "s3://bucket/c")
    assert results_location(None)[1] == "s3://bucket/c"


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_killed_on_one_node_goes_on_on_another_from_the_uri(bucket: str, tmp_path: Path) -> None:
    file = tmp_path / "far.yaml"
    text = TINY.replace("name: tiny", "name: far").replace("trials: 6", "trials: 2")
    file.write_text(f"{text}resources: {{concurrent_trials: 1}}\nearly_stopping: {{method: none}}\n")
    command = [sys.executable, "-m", "sweeps", "sweep", str(file), "--results", f"{bucket}/far"]

    def start(home: str) -> "subprocess.Popen[str]":
        environment = os.environ | {"HOME": str(tmp_path / home), "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    first = start("node-a")
    assert first.stdout is not None
    printed = ""
    for line in first.stdout:
        printed += line
        if "trial-0001  COMPLETED" in line:
            break
    # Some seconds behind, the mirror has the record.
    store, root = FileSystem.from_uri(f"{bucket}/far")
    wait_until(lambda: b"COMPLETED" in (uploaded(store, root) or b""), "the record was never sent")
    first.kill()
    first.communicate()
    (before,) = (tmp_path / "node-a").glob("pretune/mirrored/*/far-*/trials")
    finished = {one.number: one for one in TrialStore(before).load_all() if one.is_done}
    assert finished, printed
    shutil.rmtree(tmp_path / "node-a")

    second = start("node-b")
    output, _ = second.communicate(timeout=COMMAND_HANGS_AFTER_S)
    assert second.returncode == 0, output
    assert f"restored from {bucket}/far/far-" in output
    (after,) = (tmp_path / "node-b").glob("pretune/mirrored/*/far-*/trials")
    records = {one.number: one for one in TrialStore(after).load_all()}
    assert len(records) == 2
    assert records[1] == finished[1]
    assert [one.outcome for one in records.values()] == [Outcome.COMPLETED] * 2
    # The model went there as well.
    assert Mirror(after.parent, f"{bucket}/far/{after.parent.name}").read("best/model.safetensors")


def uploaded(store: FileSystem, root: str) -> bytes | None:
    found = store.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
    names = [one.path for one in found if one.path.endswith("trial-0001/trial.json")]
    return bytes(store.open_input_stream(names[0]).read()) if names else None
