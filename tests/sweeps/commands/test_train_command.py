"""`pretune train` as a user runs it: a sweep's winner, trained in stages, interrupted, gone on with, and used."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from mlflow.tracking import MlflowClient

from command import press_ctrl_c, run, start
from patience import HANGS_AFTER_S, wait_until
from sweeps.records.trial_records import TrialStore
from sweeps.tracking.mlflow_store import EXPERIMENT

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SWEEP = """\
name: small
corpus: {builtin: python-docs, holdout: 5%}
tokenizer: {kind: byte-bpe, vocabulary: 1000}
model: {family: encoder, layers: 1, width: 32, heads: 2, sequence_length: 32}
objective: {masked_lm: {masking_rate: 0.15}}
training: {batch_size: 16, micro_batch_size: 8}
search: {training.learning_rate: {choice: [3e-3]}}
budget: {trials: 1, tokens_per_trial: 40k}
"""
STAGED = """\
name: small-staged
start: {settings_of: small}
corpus: {builtin: python-docs, holdout: 5%}
tokenizer: {kind: byte-bpe, vocabulary: 1000}
model: {family: encoder, layers: 1, width: 32, heads: 2}
objective: {masked_lm: {masking_rate: 0.15}}
training: {schedule: linear, warmup: 10%, micro_batch_size: 16}
stages:
  - {sequence_length: 16, batch_size: 64, epochs: 0.1}
  - {sequence_length: 32, batch_size: 32, tokens: 300k}
"""


def only_folder(results: Path, name: str) -> Path:
    (found,) = [
        path.parent
        for path in results.glob(f"{name}-*/summary.json")
        if json.loads(path.read_text(encoding="utf-8"))["name"] == name
    ]
    return found


def summary_of(results: Path, name: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((only_folder(results, name) / "summary.json").read_text(encoding="utf-8"))
    return summary


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of one trial."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "small.yaml").write_text(SWEEP)
    code, output = run("sweep", folder / "small.yaml", "--results", folder)
    assert code == 0, output
    return folder


@pytest.fixture(scope="module")
def staged(results: Path) -> tuple[str, str, list[float]]:
    """A training in two stages, interrupted in the second: what was printed before and after, and the tokens before."""
    file = results / "small-staged.yaml"
    file.write_text(STAGED)
    process = start("train", file, "--results", results)
    wait_for_second_stage(results)
    press_ctrl_c(process)
    before, _ = process.communicate(timeout=HANGS_AFTER_S)
    assert process.returncode == 130, before
    reported = [report["tokens"] for report in reports_of(results)]
    code, after = run("train", file, "--results", results)
    assert code == 0, after
    return before, after, reported


def wait_for_second_stage(results: Path) -> None:
    def has_begun() -> bool:
        found = results.glob("small-staged-*/trials/trial-0001/reports.jsonl")
        return any('"stage": 2.0' in reports.read_text(encoding="utf-8") for reports in found)

    wait_until(has_begun, "the second stage never began")


def reports_of(results: Path) -> list[dict[str, float]]:
    store = TrialStore(only_folder(results, "small-staged") / "trials")
    return list(store.reports(store.load_all()[0]))


def test_a_training_interrupted_in_its_second_stage_resumes_and_ends_at_the_tokens_of_both(
    staged: tuple[str, str, list[float]], results: Path
) -> None:
    before, _, reported = staged
    assert "stage 1: rows of 16 tokens" in before
    best = summary_of(results, "small-staged")["best"]
    reports = reports_of(results)
    tokens = [report["tokens"] for report in reports]
    assert tokens == sorted(set(tokens))
    assert max(reported) < best["tokens"] == tokens[-1]
    lengths = {report["stage"]: report["train/sequence_length"] for report in reports}
    assert lengths == {1.0: 16.0, 2.0: 32.0}
    # The step that reaches the second stage's tokens is the last: no more than one step of 32 rows beyond.
    first_stage = max(report["tokens"] for report in reports if report["stage"] == 1.0)
    assert 0 <= best["tokens"] - first_stage - 300_000 < 32 * 32


def test_sequence_length_and_learning_rate_are_curves_in_mlflow_and_tensorboard(
    staged: tuple[str, str, list[float]], results: Path
) -> None:
    client = MlflowClient(f"sqlite:///{results / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    parent = summary_of(results, "small-staged")["mlflow_run_id"]
    (trial,) = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    expected = {int(report["tokens"]): report for report in reports_of(results)}
    for name in ("train/sequence_length", "train/learning_rate"):
        curve = {metric.step: metric.value for metric in client.get_metric_history(trial.info.run_id, name)}
        assert curve == {tokens: pytest.approx(report[name]) for tokens, report in expected.items() if name in report}
    assert list(only_folder(results, "small-staged").glob("trials/trial-0001/tensorboard/events*"))


def test_the_model_of_a_staged_training_has_positions_for_its_longest_stage(
    staged: tuple[str, str, list[float]], results: Path
) -> None:
    model = transformers.AutoModelForMaskedLM.from_pretrained(only_folder(results, "small-staged") / "best")
    assert model.config.max_position_embeddings == 32 + 2
    assert summary_of(results, "small-staged")["start"][0].startswith("settings of trial-0001 in ")


def test_the_same_command_again_trains_nothing(staged: tuple[str, str, list[float]], results: Path) -> None:
    code, output = run("train", results / "small-staged.yaml", "--results", results)
    assert code == 0
    assert "the sweep was already finished" in output


def test_the_folder_of_a_sweep_says_what_to_train_and_where_to_continue(results: Path) -> None:
    swept = only_folder(results, "small")
    code, output = run("train", swept, "--tokens", "80k")
    assert code == 0, output
    assert "continues from the winner's trunk: 34," in output
    folder = only_folder(results, "small-train")
    store = TrialStore(folder / "trials")
    first = next(iter(store.reports(store.load_all()[0])))
    assert first["tokens"] > 34_000
    winner, trained = (summary_of(results, name)["best"] for name in ("small", "small-train"))
    assert 80_000 <= trained["tokens"] < 80_000 + 16 * 32
    assert trained["holdout_loss_nats_per_token"] < winner["holdout_loss_nats_per_token"]
