"""Whole sweeps from the command line, with real Ray, MLflow, files and signals."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import transformers
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from command import run
from core.distributed.workers import Workers
from core.model_files.checkpoint import trunk_checkpoint
from core.training.training_run import run_training
from data_pipeline.tokens.token_blocks import open_prepared
from finished_results import check_winner, child_runs, summary_of, sweep_folder
from finished_sweep import TinySweep
from sweeps.commands.cli import app
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import MAP_FILE
from sweeps.records.trial_records import LOSS, TrialStore
from sweeps.settings.sweep_file import load_sweep_file
from sweeps.tracking.final_values import FINAL_LOSS

pytestmark = pytest.mark.ray

CHATTER = re.compile(r"pid=\d+|\.py:\d+ -- |Ray instance|RayTrainWorker")
"""How Ray and its workers speak."""


@pytest.fixture(scope="module")
def results(tiny_sweep: TinySweep) -> Path:
    """One results folder for all sweeps of this module, so that the corpus is prepared once."""
    return tiny_sweep.results


@pytest.fixture(scope="module")
def tiny(tiny_sweep: TinySweep) -> tuple[Path, str]:
    """A finished sweep with one configuration that does not fit: its file, and what it printed."""
    return tiny_sweep.file, tiny_sweep.output


def test_a_results_folder_holds_no_pickle(results: Path, tiny: tuple[Path, str]) -> None:
    """Ray reads its state back; from a folder that others can write to, it would run their code."""
    files = [path for path in results.rglob("*") if path.is_file()]
    assert any(".ray" in path.parts for path in files), "Ray keeps no state here any more"
    assert [path for path in files if path.suffix == ".pkl" or b"CLOUDPICKLE" in path.read_bytes()] == []


def test_trials_csv_summary_and_mlflow_agree_on_the_ranking(results: Path, tiny: tuple[Path, str]) -> None:
    summary = summary_of(results, "tiny")
    with (sweep_folder(results, "tiny") / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    records = {record.name: record for record in TrialStore(sweep_folder(results, "tiny") / "trials").load_all()}
    completed = [record for record in records.values() if record.outcome is Outcome.COMPLETED]
    by_loss = [record.name for record in sorted(completed, key=lambda record: record.metrics[LOSS])]
    assert len(by_loss) >= 2
    assert summary["ranking"][: len(by_loss)] == by_loss
    assert [row["trial"] for row in rows] == summary["ranking"]
    runs = {run.info.run_name: run for run in child_runs(results, "tiny")}
    assert sorted(runs) == sorted(records)
    assert sorted(runs, key=lambda name: runs[name].data.metrics["final/rank"]) == summary["ranking"]
    for record in completed:
        run = runs[record.name]
        assert run.data.metrics[FINAL_LOSS] == pytest.approx(record.metrics[LOSS], rel=1e-12)
        assert run.data.tags["pretune.outcome"] == "COMPLETED"
        assert set(run.data.params) == set(record.settings)


def test_completed_trial_that_paused_at_every_rung_ends_like_a_plain_run(
    results: Path, tiny: tuple[Path, str], tmp_path: Path
) -> None:
    folder, best = sweep_folder(results, "tiny"), summary_of(results, "tiny")["best"]
    (record,) = (one for one in TrialStore(folder / "trials").load_all() if one.name == best["trial"])
    assert sorted(record.rung_losses) == [3333, 10_000]
    assert record.branch_tokens >= 0.15 * sum(record.rung_losses)
    run = load_sweep_file(folder / "sweep.yaml").run_config(record.settings)
    data = open_prepared(Path(summary_of(results, "tiny")["data"]["folder"]))
    plain = run_training(
        run, data, workers=Workers(), folder=tmp_path, report=lambda _: True, evaluate_at_tokens=(),
        memory_limit_bytes=16 * 2**20,
    )  # fmt: skip
    # Lanes may have another number of threads, which sum in another order.
    assert record.loss == pytest.approx(plain.metrics[LOSS], rel=1e-3)
    assert trunk_checkpoint(folder / "trials" / record.name) is not None
    others = [path for path in (folder / "trials").glob("*/step-*") if path.parent.name != record.name]
    assert others == []


def test_metrics_stand_on_the_token_axis(results: Path, tiny: tuple[Path, str]) -> None:
    client = MlflowClient(f"sqlite:///{results / 'mlflow.db'}")
    best = summary_of(results, "tiny")["best"]["trial"]
    run = next(run for run in child_runs(results, "tiny") if run.info.run_name == best)
    history = client.get_metric_history(run.info.run_id, LOSS)
    tokens = [metric.step for metric in history]
    # Eight evaluations over 30,000 tokens, each at the first step at or past its place; a step is 1,024 tokens at most.
    # Where that is the step at which a trial pauses, its branch is evaluated instead.
    pauses = [metric.step for metric in client.get_metric_history(run.info.run_id, "branch/loss_nats_per_token")]
    assert len(pauses) == 2
    assert len({*tokens, *pauses}) >= 8
    assert tokens == sorted(tokens)
    assert 30_000 <= tokens[-1] < 31_024


def test_what_does_not_fit_ends_infeasible_with_the_numbers_and_is_not_launched_again(
    results: Path, tiny: tuple[Path, str]
) -> None:
    records = TrialStore(sweep_folder(results, "tiny") / "trials").load_all()
    first, *others = records
    assert first.outcome is Outcome.INFEASIBLE
    assert first.memory_verdict == "ran out of memory"
    assert "micro-batches of 256 rows" in first.reason
    assert "16.00 MiB" in first.reason
    assert all(
        record.outcome is not Outcome.INFEASIBLE and record.peak_memory_bytes <= 16 * 2**20  # type: ignore[operator]
        for record in others
    )
    # Seven of nine settings of the two sizes fit: what was proposed beyond them was refused and used up no trial.
    assert len(others) == 6


MEMORY = """\
name: {name}
corpus: {{builtin: python-docs, holdout: 5%}}
tokenizer: {{kind: byte-bpe, vocabulary: 1000}}
model: {{family: encoder, layers: 1, width: 32, heads: 2, sequence_length: 32}}
objective: {{masked_lm: {{masking_rate: 0.15}}}}
training: {{batch_size: 256}}
search:
  training.learning_rate: {{choice: [1e-3, 3e-3]}}
  training.micro_batch_size: {{choice: [8, 256]}}
searcher: {{method: grid}}
early_stopping: {{method: none}}
budget: {{trials: 4, tokens_per_trial: 10k}}
resources: {{memory: 16MiB, concurrent_trials: 1}}
"""


def test_the_next_sweep_knows_what_ran_out_and_lists_what_a_grid_must_leave_out(
    results: Path, tiny: tuple[Path, str]
) -> None:
    file = results / "grid.yaml"
    file.write_text(
        MEMORY.format(name="grid").replace("batch_size: 256}", "batch_size: 256, on_oom: stop}")
        + "start_with: [{training.learning_rate: 1e-3, training.micro_batch_size: 256}]\n"
    )
    code, output = run("sweep", file, "--results", results, "-v")
    assert code == 0, output
    assert CHATTER.search(output), output
    assert "observations of earlier sweeps on cpu" in output
    assert "2 settings of the grid are refused before launch" in output
    known, *ran = TrialStore(sweep_folder(results, "grid") / "trials").load_all()
    assert (known.outcome, known.memory_verdict) == (Outcome.INFEASIBLE, "skipped by dominance")
    assert f"trial-0001 of {sweep_folder(results, 'tiny').name}" in known.reason
    assert [record.settings["training.micro_batch_size"] for record in ran] == [8, 8]
    refused = summary_of(results, "grid")["refused_before_launch"]
    assert [one["settings"]["training.micro_batch_size"] for one in refused] == [256, 256]
    frontier = json.loads((sweep_folder(results, "grid") / MAP_FILE).read_text())
    assert {one["trial"].split("-")[0] for one in frontier["observations"]} == {"tiny", "grid"}


@pytest.mark.slow
def test_a_survived_out_of_memory_says_so_everywhere_and_the_next_trial_does_without_one(results: Path) -> None:
    file = results / "survives.yaml"
    file.write_text(
        MEMORY.format(name="survives").replace("width: 32", "width: 48")
        + "start_with:\n"
        + "  - {training.learning_rate: 1e-3, training.micro_batch_size: 256}\n"
        + "  - {training.learning_rate: 3e-3, training.micro_batch_size: 256}\n"
    )
    code, output = run("sweep", file, "--results", results, "--set", "budget.trials=2")
    assert code == 0, output
    survived, spared = TrialStore(sweep_folder(results, "survives") / "trials").load_all()
    assert survived.outcome is Outcome.COMPLETED
    assert survived.memory_verdict == "ran out of memory and went on"
    assert survived.out_of_memory_micro_batches[0] == 256
    assert spared.outcome is not Outcome.INFEASIBLE
    assert (spared.memory_verdict, spared.out_of_memory_events) == (None, 0)
    for record in (survived, spared):
        assert record.micro_batch_size_asked == 256
        assert record.micro_batch_size_used is not None
        assert 8 < record.micro_batch_size_used < 256
    with (sweep_folder(results, "survives") / "trials.csv").open(newline="") as csv_file:
        rows = {row["trial"]: row for row in csv.DictReader(csv_file)}
    assert rows["trial-0001"]["memory_verdict"] == "ran out of memory and went on"
    assert int(rows["trial-0001"]["out_of_memory_events"]) == survived.out_of_memory_events >= 1
    runs = {run.info.run_name: run.data for run in child_runs(results, "survives")}
    assert runs["trial-0001"].tags["pretune.memory_verdict"] == "ran out of memory and went on"
    assert runs["trial-0001"].tags["pretune.micro_batch_size_asked"] == "256"
    assert runs["trial-0002"].metrics["memory/out_of_memory_events"] == 0


@pytest.mark.slow
def test_a_space_that_is_infeasible_altogether_ends_at_once_with_the_numbers(results: Path) -> None:
    file = results / "hopeless.yaml"
    # In fp32, which auto means on a processor without bf16, one row would fit and eight need more.
    text = MEMORY.format(name="hopeless").replace("16MiB", "1100KiB")
    file.write_text(text.replace("batch_size: 256}", "batch_size: 256, precision: bf16}"))
    code, output = run("sweep", file, "--results", results)
    assert code == 2
    assert "no settings of this sweep fit in 1.07 MiB of one worker" in output
    assert "needs 1.54 MiB of 1.07 MiB" in output
    assert "Traceback" not in output
    assert list((sweep_folder(results, "hopeless") / "trials").glob("trial-*")) == []


def test_terminal_shows_ranking_best_settings_and_where_things_are(tiny: tuple[Path, str], results: Path) -> None:
    _, output = tiny
    best = summary_of(results, "tiny")["best"]
    assert f"best     {best['trial']}" in output
    assert f"training.batch_size: {best['training.batch_size']}" in output
    assert str(sweep_folder(results, "tiny") / "best") in output
    assert "pretune ui" in output
    assert "INFEASIBLE" in output
    assert "Traceback" not in output
    assert "Warning" not in output
    assert CHATTER.findall(output) == []
    assert "\x1b" not in output


def test_the_same_command_again_finds_everything_done_and_makes_no_new_run(
    results: Path, tiny: tuple[Path, str]
) -> None:
    runs = {run.info.run_id for run in child_runs(results, "tiny")}
    before = (sweep_folder(results, "tiny") / "trials.csv").read_bytes()
    code, output = run("sweep", tiny[0], "--results", results)
    assert code == 0
    assert "the sweep was already finished" in output
    assert {run.info.run_id for run in child_runs(results, "tiny")} == runs
    assert (sweep_folder(results, "tiny") / "trials.csv").read_bytes() == before


@pytest.mark.slow
def test_a_changed_file_takes_over_what_still_holds_and_mlflow_says_where_it_comes_from(
    results: Path, tiny: tuple[Path, str], tmp_path: Path
) -> None:
    earlier = sweep_folder(results, "tiny")
    shutil.copytree(earlier, tmp_path / earlier.name)
    (tmp_path / "prepared").symlink_to(results / "prepared")
    before = {one.name: one for one in TrialStore(earlier / "trials").load_all()}
    valid = [one for one in before.values() if one.outcome in (Outcome.COMPLETED, Outcome.STOPPED, Outcome.DIVERGED)]
    # As many trials as there are already: nothing is left to train.
    count = f"budget.trials={len(valid)}"
    code, output = run("sweep", tiny[0], "--results", tmp_path, "--set", count, "--set", "searcher.seed=1")
    assert code == 0, output
    assert f"is a new sweep; changes from {earlier.name}:" in output
    assert "searcher.seed: 0 -> 1" in output
    assert f"{len(valid)} finished trials are still valid and taken over: {valid[0].name}" in output
    (now,) = (folder for folder in tmp_path.glob("tiny-*") if folder.name != earlier.name)
    records = TrialStore(now / "trials").load_all()
    taken = {one.name: one.taken_over_from for one in records if one.taken_over_from}
    assert list(taken.values()) == [f"{earlier.name}/{one.name}" for one in valid]
    assert [one.loss for one in records if one.taken_over_from] == [one.loss for one in valid]
    # What the file starts with and did not fit is refused again, by what was observed.
    assert [one.outcome for one in records if not one.taken_over_from] == [Outcome.INFEASIBLE]
    runs = {one.info.run_name: one.data.tags for one in child_runs(tmp_path, "tiny")}
    assert sorted(runs) == sorted(one.name for one in records)
    assert {name: runs[name]["pretune.taken_over_from"] for name in taken} == taken
    with (now / "trials.csv").open(newline="") as file:
        rows = {row["trial"]: row["taken_over_from"] for row in csv.DictReader(file)}
    assert {name: origin for name, origin in rows.items() if origin} == taken
    check_winner(now, transformers.RobertaForMaskedLM)


def test_the_winning_encoder_gives_the_same_logits_in_transformers(results: Path, tiny: tuple[Path, str]) -> None:
    check_winner(sweep_folder(results, "tiny"), transformers.RobertaForMaskedLM)


def test_a_model_is_evaluated_on_its_holdout_by_any_name_that_it_has(
    results: Path, tiny: tuple[Path, str], tmp_path: Path
) -> None:
    folder, best = sweep_folder(results, "tiny"), summary_of(results, "tiny")["best"]
    run_ids = {one.info.run_name: one.info.run_id for one in child_runs(results, "tiny")}
    places = [folder, folder / "trials" / best["trial"], f"runs:/{run_ids[best['trial']]}", "models:/tiny/1"]
    for place in places:
        code, output = in_process("evaluate", place, "--json", "--results", results)
        assert code == 0, output
        # The same rows and masks; micro-batches and number of threads are others, which sum in another order.
        assert json.loads(output)[LOSS] == pytest.approx(best["holdout_loss_nats_per_token"], rel=1e-4), place
        assert in_process("export", place, tmp_path / f"copy-{places.index(place)}", "--results", results)[0] == 0
    weights = [(tmp_path / f"copy-{index}" / "model.safetensors").read_bytes() for index in range(len(places))]
    assert weights == [weights[0]] * len(places)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(results / "mlflow.db", tmp_path / "elsewhere")
    # The corpus is known by where it was prepared, wherever the MLflow store is.
    assert in_process("evaluate", "models:/tiny", "--results", tmp_path / "elsewhere")[0] == 0


def in_process(*arguments: object) -> tuple[int, str]:
    """Exit code and output of a command that starts nothing."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    return done.exit_code, done.output
