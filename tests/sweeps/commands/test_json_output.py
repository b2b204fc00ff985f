"""What commands give a script with --json: one line that parses, with the figures that a person is shown."""

import json
from pathlib import Path
from typing import Any

import pytest
from swept_folder import example_records, example_sweep, write_results
from typer.testing import CliRunner

from data_pipeline.schema.settings import format_bytes
from sweep_examples import TINY
from sweeps.analysis.result_tables import write_summary
from sweeps.commands.cli import app
from sweeps.records.trial_records import LOSS, TrialStore
from sweeps.settings.sweep_file import dump_sweep


def run(*arguments: object, fails: bool = False) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == (2 if fails else 0), done.output
    return done.output


def parsed(*arguments: object) -> Any:
    (line,) = run(*arguments, "--json").splitlines()
    return json.loads(line)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + "resources: {memory: 16MiB}\n")
    return path


def test_plan_gives_a_script_what_it_prints(file: Path) -> None:
    found, printed = parsed("plan", file, "--no-measure"), run("plan", file, "--no-measure")
    assert found["max_tokens"] == 6 * 30_000
    assert found["memory_of_one_worker_bytes"] == 16 * 2**20
    assert set(found["predicted_peak_memory_bytes"]) == {"4", "8", "16"}
    assert all(format_bytes(peak) in printed for peak in found["predicted_peak_memory_bytes"].values())
    assert f"{found['largest_micro_batch']} rows at the settings of the file" in printed


def test_the_parts_of_an_estimate_add_up_to_its_peak(file: Path) -> None:
    found = parsed("estimate", file, "--set", "training.micro_batch_size=8")
    assert (found["micro_batch_size"], found["limit_bytes"]) == (8, 16 * 2**20)
    assert sum(found["parts_bytes"].values()) == found["peak_bytes"]
    assert format_bytes(found["peak_bytes"]) in run("estimate", file, "--set", "training.micro_batch_size=8")


def test_a_check_of_a_corpus_counts_rows_and_reasons(file: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"row number {number}"}) for number in range(99)] + ['{"text": ""}']
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows))
    file.write_text(TINY.replace("builtin: python-docs", f"path: {tmp_path / 'corpus.jsonl'}"))
    found = parsed("prepare", file, "--check")
    assert (found["rows_read"], found["rows_kept"], found["rows_rejected"]) == (100, 99, 1)
    assert sum(found["rejects"].values()) == 1
    assert [Path(one["path"]).name for one in found["files"]] == ["corpus.jsonl"]


def swept(folder: Path, *, seed: int, **changes: Any) -> Path:
    """A results folder as `report` finds it."""
    folder.mkdir()
    records = example_records(TrialStore(folder / "trials"), seed=seed)
    (folder / "sweep.yaml").write_text(dump_sweep(example_sweep(**changes)))
    write_summary(folder / "summary.json", write_results(folder, records))
    return folder


def test_report_on_one_sweep_gives_its_summary(tmp_path: Path) -> None:
    folder = swept(tmp_path / "one", seed=0)
    assert parsed("report", folder) == json.loads((folder / "summary.json").read_text())
    assert (folder / "report.html").is_file()


def test_report_on_two_sweeps_compares_them(tmp_path: Path) -> None:
    one = swept(tmp_path / "one", seed=0)
    two = swept(tmp_path / "two", seed=1, training={"clip": 0.5})
    found, printed = parsed("report", one, two), run("report", one, two)
    best = [json.loads((folder / "summary.json").read_text())["best"] for folder in (one, two)]
    losses = [row[LOSS.replace("/", "_")] for row in best]
    assert found["names"] == ["one", "two"]
    assert found["results"]["best trial"] == [row["trial"] for row in best]
    assert found["loss_difference_nats"] == pytest.approx(losses[1] - losses[0])
    assert found["settings"] == {"training.clip": [1.0, 0.5]}
    assert f"is lower by {abs(losses[1] - losses[0]):.4f} nats" in printed
    assert "training.clip" in printed


def test_losses_on_other_holdouts_are_not_subtracted(tmp_path: Path) -> None:
    one, two = swept(tmp_path / "one", seed=0), swept(tmp_path / "two", seed=1)
    summary = json.loads((two / "summary.json").read_text())
    summary["data"]["fingerprint"] = "another"
    write_summary(two / "summary.json", summary)
    assert parsed("report", one, two)["loss_difference_nats"] is None
    assert "The losses do not compare: the prepared corpora differ" in run("report", one, two)


def test_a_folder_that_is_no_sweep_says_what_to_give(tmp_path: Path) -> None:
    output = run("report", tmp_path, fails=True)
    assert "is no results folder of a sweep" in output
    assert "results/<name>-<id>" in output
