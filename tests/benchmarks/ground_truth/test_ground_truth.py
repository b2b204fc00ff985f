"""The ground truth: its jobs keep the conditions of their comparison, its tables are whole, and its script resumes."""

import math
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from make_truth_tables import (
    Training,
    append,
    mend,
    missing_repeats,
    missing_settings,
    path_of,
    read_table,
    training_of,
)  # fmt: skip
from small_corpus import small_corpus
from truth_jobs import JOBS, SEEDS, SHARES, WARMUP_SHARE, Job, Setting, branch_steps
from truth_training import ANNEALED, AVERAGES, TRUNK, columns, train

from core.distributed.workers import Workers
from core.model_files.checkpoint import newest_checkpoint, restore_weights
from core.model_files.initial_weights import fresh_model
from core.settings.precision import choose_precision
from core.step.evaluation import evaluate, holdout_source
from core.training import run_checkpoints
from core.training.training_run import run_training
from data_pipeline.tokens.token_blocks import PreparedCorpus
from patience import COMMAND_HANGS_AFTER_S, HANGS_AFTER_S

HERE = Path(__file__).parent
SCRIPT = HERE / "make_truth_tables.py"
LOSSES = (*ANNEALED, *AVERAGES, *TRUNK)
MOST_BYTES = 500_000
ROUNDED = 1.01e-4
"""Tables hold ten-thousandths; a loss computed in batches of other sizes may round to the neighbour."""

TINY = Job(
    "tiny", "design", JOBS["causal_books"].corpus, 300, 16, "beta2", (0.95,), (1e-2, 3e-2), batches=(2, 4),
    fewest_steps=32, row_tokens=16, layers=1, repeated=1,
)  # fmt: skip
SETTING = Setting(1e-2, 2, 0.95)
NUM_STEPS = TINY.steps(SETTING)
LOSS = "holdout/loss_nats_per_token"


@pytest.fixture(scope="module")
def data() -> PreparedCorpus:
    return small_corpus()


@pytest.fixture(scope="module")
def row(data: PreparedCorpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train(TINY, SETTING, seed=0, data=data, folder=tmp_path_factory.mktemp("run"))


# Jobs


def test_two_jobs_choose_the_design_and_two_others_judge() -> None:
    assert {name for name, job in JOBS.items() if job.role == "design"} == {"causal_books", "masked_packets"}
    assert {name for name, job in JOBS.items() if job.role == "judge"} == {"masked_books", "causal_chinese"}


def test_jobs_have_both_objectives_and_two_sizes_in_each_role() -> None:
    for role in ("design", "judge"):
        assert {job.is_causal for job in JOBS.values() if job.role == role} == {True, False}
        assert len({job.width for job in JOBS.values() if job.role == role}) == 2


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_grid_spans_two_decades_of_learning_rate_and_sixteen_batches(job: Job) -> None:
    settings = job.in_order()
    assert len(set(settings)) == len(settings) >= 64
    assert max(job.learning_rates) / min(job.learning_rates) == pytest.approx(100)
    assert (min(job.batches), max(job.batches)) == (1, 16)
    assert job.row_tokens <= 64
    assert len(job.thirds) == 2


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_half_of_the_order_covers_the_grid_evenly(job: Job) -> None:
    settings = job.in_order()
    half = settings[: len(settings) // 2]
    counts = Counter(setting.batch_rows for setting in half)
    # Seven of each, but for the corner of the smallest batch, which comes last.
    assert all(4 <= counts[batch] <= 8 for batch in job.batches)
    assert {setting.learning_rate for setting in half} == set(job.learning_rates)
    assert min(Counter(setting.third for setting in half).values()) >= 14


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_the_largest_batch_takes_three_hundred_steps_and_every_setting_the_same_tokens(job: Job) -> None:
    assert job.fewest_steps >= 300
    assert {job.steps(setting) * setting.batch_rows * job.row_tokens for setting in job.in_order()} == {job.tokens}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_branch_has_fifty_steps_where_the_length_has_eighty_and_no_more_than_fifteen_percent_needs(job: Job) -> None:
    for setting in job.in_order():
        for share in SHARES:
            length = round(share * job.steps(setting))
            assert branch_steps(length) >= min(50, int(5 / 8 * length))
            assert branch_steps(length) == max(round(0.15 * length), min(50, int(5 / 8 * length)))


def test_the_warmup_is_a_tenth_of_the_shortest_length() -> None:
    assert pytest.approx(min(SHARES) / 10) == WARMUP_SHARE
    assert all(job.run_config(job.in_order()[0], seed=0).training.warmup == WARMUP_SHARE for job in JOBS.values())


# One training


def test_a_row_has_every_loss_and_its_costs(row: dict[str, Any]) -> None:
    assert row["outcome"] == "completed"
    assert all(row[name] > 0 for name in LOSSES)
    assert set(row) == set(columns(TINY))
    assert row["trunk_tokens"] == TINY.tokens
    rows_of_branches = sum(branch_steps(round(share * NUM_STEPS)) for share in SHARES) * SETTING.batch_rows
    assert row["branch_tokens"] == rows_of_branches * TINY.row_tokens
    assert row["processor_s"] > 0
    assert row["peak_bytes"] > 0


def test_an_annealed_loss_is_that_of_a_training_with_the_schedule_wsd(
    row: dict[str, Any], data: PreparedCorpus, tmp_path: Path
) -> None:
    cooldown = branch_steps(NUM_STEPS) / NUM_STEPS
    config = TINY.run_config(SETTING, seed=0).with_overrides(
        {"training.schedule": "wsd", "training.cooldown": cooldown, "training.tokens": TINY.tokens}
    )
    end = run_training(config, data, workers=Workers(), folder=tmp_path, report=lambda _: True, evaluate_at_tokens=[])
    assert row["annealed_1_1"] == pytest.approx(end.metrics[LOSS], abs=ROUNDED)


def test_losses_of_the_trunk_are_those_of_a_training_without_branches(
    row: dict[str, Any], data: PreparedCorpus, tmp_path: Path
) -> None:
    found: list[float] = []

    def keep(values: dict[str, float]) -> bool:
        found.extend([values[LOSS]] if LOSS in values else [])
        return True

    points = [number * TINY.tokens // len(TRUNK) for number in range(1, len(TRUNK) + 1)]
    run_training(
        TINY.run_config(SETTING, seed=0), data, workers=Workers(), folder=tmp_path, report=keep,
        evaluate_at_tokens=points,
    )  # fmt: skip
    assert [row[name] for name in TRUNK] == pytest.approx(found, abs=ROUNDED)


def test_averaged_weights_are_the_mean_of_the_last_checkpoints_of_the_trunk(
    row: dict[str, Any], data: PreparedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_checkpoints, "_MOST_OF_THE_TIME", math.inf)  # A checkpoint at each step.
    config = TINY.run_config(SETTING, seed=0)
    model, averaged = (fresh_model(config, data, torch.device("cpu")) for _ in range(2))
    after_steps: list[dict[str, torch.Tensor]] = []

    def keep_newest() -> None:
        checkpoint = newest_checkpoint(tmp_path)
        if checkpoint is not None:
            restore_weights(checkpoint / "model.safetensors", model)
            after_steps.append({name: weight.clone() for name, weight in model.state_dict().items()})

    def keep(_: dict[str, float]) -> bool:
        keep_newest()  # A report comes before the checkpoint of its step.
        return True

    run_training(
        config, data, workers=Workers(), folder=tmp_path, report=keep, evaluate_at_tokens=[], report_every_s=0.0,
        checkpoint_every_s=0.0,
    )  # fmt: skip
    keep_newest()
    assert len(after_steps) == NUM_STEPS
    last = after_steps[-round(0.18 * NUM_STEPS) :]
    averaged.load_state_dict({name: torch.stack([one[name] for one in last]).mean(0) for name in last[0]})
    metrics = evaluate(
        averaged, holdout_source(data, is_causal=True), Workers(), micro_batch_size=40,
        precision=choose_precision("fp32", torch.device("cpu")),
    )  # fmt: skip
    assert isinstance(metrics, dict)
    assert row["averaged_1_1"] == pytest.approx(metrics[LOSS], abs=ROUNDED)


def test_a_diverged_training_keeps_its_earlier_losses(data: PreparedCorpus, tmp_path: Path) -> None:
    row = train(TINY, replace(SETTING, learning_rate=1e4), seed=0, data=data, folder=tmp_path)
    assert row["outcome"] == "diverged"
    assert 0 < row["diverged_at_tokens"] == row["trunk_tokens"] < TINY.tokens
    assert row.get("annealed_1_1") is None


# The script


def row_of(one: Training, loss: float) -> dict[str, Any]:
    setting = one.setting
    return {
        "learning_rate": setting.learning_rate, "batch_rows": setting.batch_rows, one.job.third: setting.third,
        "seed": one.seed, "outcome": "completed", "annealed_1_1": loss,
    }  # fmt: skip


def test_a_row_that_a_kill_tore_is_trained_again(tmp_path: Path) -> None:
    first, second, *_ = missing_settings(TINY, tmp_path)
    append(TINY, tmp_path, row_of(first, 2.0))
    whole = path_of(TINY, tmp_path).read_text()
    append(TINY, tmp_path, row_of(second, 1.0))
    path_of(TINY, tmp_path).write_text(path_of(TINY, tmp_path).read_text()[:-9])
    mend(TINY, tmp_path)
    assert path_of(TINY, tmp_path).read_text() == whole
    assert missing_settings(TINY, tmp_path)[0] == second


def test_the_best_settings_get_further_seeds_and_then_nothing_is_missing(tmp_path: Path) -> None:
    settings = missing_settings(TINY, tmp_path)
    for number, one in enumerate(settings):
        append(TINY, tmp_path, row_of(one, 2.0 - number / 10))
    repeats = missing_repeats(TINY, tmp_path)
    assert repeats == [replace(settings[-1], seed=seed) for seed in SEEDS[1:]]
    for one in repeats:
        append(TINY, tmp_path, row_of(one, 3.0))
    assert missing_settings(TINY, tmp_path) == missing_repeats(TINY, tmp_path) == []


@pytest.mark.slow
def test_the_script_killed_and_started_again_trains_every_setting_once(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--job", "masked_books", "--folder", str(tmp_path)]
    table = tmp_path / "masked_books.csv"
    killed = subprocess.Popen(command)
    give_up_at = time.monotonic() + HANGS_AFTER_S
    while not (table.exists() and table.read_bytes().count(b"\n") > 2):
        assert killed.poll() is None
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    subprocess.run(command, check=True, timeout=COMMAND_HANGS_AFTER_S)
    trainings = [training_of(JOBS["masked_books"], row) for row in read_table(JOBS["masked_books"], tmp_path)]
    assert len(set(trainings)) == len(trainings) == 10


# The tables


BEGUN = {name: job for name, job in JOBS.items() if (HERE / f"{name}.csv").exists()}


@pytest.mark.parametrize("job", BEGUN.values(), ids=BEGUN)
def test_a_loss_is_missing_only_after_divergence(job: Job) -> None:
    rows = read_table(job, HERE)
    assert rows
    for row in rows:
        assert tuple(row) == columns(job)
        assert (row["outcome"], row["diverged_at_tokens"] == "") in (("completed", True), ("diverged", False))
        assert int(row["trunk_tokens"]) == (int(row["diverged_at_tokens"] or job.tokens))
        if row["outcome"] == "completed":
            assert all(0 < float(row[name]) < 20 for name in (*AVERAGES, *TRUNK))


@pytest.mark.parametrize("job", BEGUN.values(), ids=BEGUN)
def test_a_table_has_every_setting_and_the_seeds_of_the_best(job: Job) -> None:
    assert missing_settings(job, HERE) == []
    assert missing_repeats(job, HERE) == []


def test_all_tables_together_are_small() -> None:
    assert sum(path.stat().st_size for path in HERE.glob("*.csv")) < MOST_BYTES
