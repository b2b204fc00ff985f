"""The loop from outside: what it reports, how it ends, and that going on is the same as never having stopped."""

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_corpus import VOCABULARY, small_corpus
from small_runs import TOKENS_PER_STEP, final_weights, small_run, train
from two_workers import on_workers

from core.distributed import adaptive_micro_batch
from core.distributed.workers import Workers
from core.memory.memory_limit import memory_limit
from core.memory_prediction.peak_memory import largest_micro_batch
from core.model_files.checkpoint import best_checkpoint, model_tensors, newest_checkpoint, restore_weights
from core.model_files.huggingface_config import huggingface_config
from core.model_files.initial_weights import fresh_model
from core.models.decoder import LlamaDecoder
from core.models.huggingface_names import to_huggingface
from core.models.language_model import LanguageModel
from core.models.model_factory import build_model
from core.settings.precision import Precision
from core.settings.run_config import RunConfig
from core.step.evaluation import evaluate, holdout_source
from core.step.step_stretches import STRETCHES
from core.training import run_checkpoints, training_run
from core.training.run_end import RunEnd
from core.training.training_run import run_training
from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.tokens.token_blocks import open_prepared

torch.set_num_threads(1)

REPORT_KEYS = {
    "tokens",
    "step",
    "epoch",
    "training_s",
    "train/loss_nats_per_token",
    "train/learning_rate",
    "train/gradient_norm",
    "train/tokens_per_s",
    "micro_batch_size",
    "memory/peak_bytes",
    "profile/forward_ms",
    "profile/backward_ms",
    "profile/optimizer_ms",
    "profile/data_ms",
    "profile/exchange_ms",
}
HOLDOUT_KEYS = {
    "holdout/loss_nats_per_token",
    "holdout/loss_standard_error",
    "holdout/accuracy",
    "holdout/top10_accuracy",
    "holdout/macro_f1",
    "holdout/perplexity",
    "holdout/bits_per_byte",
}


def test_evaluation_stands_at_the_first_step_past_each_point_and_at_the_end(tmp_path: Path) -> None:
    reports: list[dict[str, float]] = []
    end = train(
        small_run(),
        tmp_path,
        report=lambda values: reports.append(values) or True,
        evaluate_at_tokens=[5 * TOKENS_PER_STEP, 7 * TOKENS_PER_STEP + 1],
    )
    assert [values["step"] for values in reports] == [5, 8, 20]
    assert all(set(values) >= REPORT_KEYS | HOLDOUT_KEYS for values in reports)
    assert all(isinstance(value, float) for values in reports for value in values.values())
    assert end.outcome == "completed"
    assert end.metrics == {key: reports[-1][key] for key in HOLDOUT_KEYS}
    assert end.tokens == 20 * TOKENS_PER_STEP


def test_reports_between_evaluations_have_no_holdout_figures(tmp_path: Path) -> None:
    reports: list[dict[str, float]] = []
    train(small_run(), tmp_path, report=lambda values: reports.append(values) or True, report_every_s=0.0)
    assert [values["step"] for values in reports] == list(range(1, 21))
    # A slow machine's reports also have the rate of arithmetic, which is not counted in the first two seconds.
    assert all(set(values) >= REPORT_KEYS for values in reports)
    assert not any(key.startswith(("holdout/", "noise/")) for values in reports[:-1] for key in values)
    assert set(reports[-1]) >= HOLDOUT_KEYS


def test_reports_give_the_rate_of_arithmetic_and_its_share_of_the_hardwares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "_FLOPS_ARE_COUNTED_AFTER_S", 0.0)
    reports: list[dict[str, float]] = []
    train(small_run(), tmp_path, report=lambda values: reports.append(values) or True)
    last = reports[-1]
    assert last["profile/model_flops_per_s"] > 0
    assert 0 < last["profile/share_of_matmul_rate"] < 1
    stretches_ms = sum(last[f"profile/{stretch}_ms"] for stretch in STRETCHES)
    # The stretches are all of a step but its bookkeeping: never more than there was time.
    assert 0 < stretches_ms <= 1000 * TOKENS_PER_STEP / last["train/tokens_per_s"]


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_training_learns_what_there_is_to_learn(family: str, tmp_path: Path) -> None:
    tokens = {"decoder": 60, "encoder": 120}[family] * TOKENS_PER_STEP
    end = train(small_run(family=family, tokens=tokens, learning_rate=1e-2), tmp_path)
    # Knowing nothing costs ln 61. An encoder has two masked positions a row to learn from, and needs longer.
    assert end.metrics["holdout/loss_nats_per_token"] < {"decoder": 0.5, "encoder": 0.95}[family] * math.log(61)


def test_epochs_end_after_whole_batches(tmp_path: Path) -> None:
    end = train(small_run(tokens=None, epochs=1.5), tmp_path)
    # 1.5 epochs of 200 rows are 18.75 batches of 16.
    assert end.tokens == 18 * TOKENS_PER_STEP


@pytest.mark.parametrize(
    ("in_own_unit", "plain"),
    [
        ({"warmup_tokens": 5 * TOKENS_PER_STEP}, {"warmup": 0.25}),
        ({"warmup_steps": 5}, {"warmup": 0.25}),
        # 20 steps at a rate of 3e-3.
        ({"weight_decay_timescale": 0.5}, {"weight_decay": 1 / (3e-3 * 10)}),
    ],
)
def test_a_setting_in_its_own_unit_trains_as_the_one_that_it_comes_to(
    in_own_unit: dict[str, Any], plain: dict[str, Any], tmp_path: Path
) -> None:
    train(small_run(**in_own_unit), tmp_path / "own")
    train(small_run(**plain), tmp_path / "plain")
    assert final_weights(tmp_path / "own") == final_weights(tmp_path / "plain")


def test_a_warm_up_that_reaches_into_the_cooldown_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training.warmup_steps=18 is 90% of the 5,120 tokens"):
        train(small_run(warmup_steps=18), tmp_path)


def test_false_from_report_stops_the_run(tmp_path: Path) -> None:
    end = train(small_run(), tmp_path, report=lambda values: values["step"] < 6, report_every_s=0.0)
    assert (end.outcome, end.tokens) == ("stopped", 6 * TOKENS_PER_STEP)


@pytest.mark.parametrize("family", ["encoder", "decoder"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(family: str, dropout: float, tmp_path: Path) -> None:
    run = small_run(family=family).with_overrides({"model.dropout": dropout})
    points = [4 * TOKENS_PER_STEP, 12 * TOKENS_PER_STEP]
    reports: list[dict[str, float]] = []
    whole = train(run, tmp_path / "whole", evaluate_at_tokens=points)
    for last_step in (3, 11, 99):

        def stops(values: dict[str, float], last_step: int = last_step) -> bool:
            reports.append(values)
            return values["step"] < last_step

        parts = train(run, tmp_path / "parts", report=stops, evaluate_at_tokens=points, report_every_s=0.0)
    assert [values["step"] for values in reports] == list(range(1, 21))
    assert final_weights(tmp_path / "parts") == final_weights(tmp_path / "whole")
    assert parts.metrics == whole.metrics


def test_completed_run_started_again_ends_at_once_with_the_same_figures(tmp_path: Path) -> None:
    first = train(small_run(), tmp_path)
    reports: list[dict[str, float]] = []
    second = train(small_run(), tmp_path, report=lambda values: reports.append(values) or True)
    assert not reports
    assert (second.outcome, second.tokens, second.metrics) == ("completed", first.tokens, first.metrics)


def test_evaluating_more_often_changes_nothing_that_is_learnt(tmp_path: Path) -> None:
    train(small_run(family="encoder"), tmp_path / "seldom")
    often = [number * TOKENS_PER_STEP for number in range(20)]
    train(small_run(family="encoder"), tmp_path / "often", evaluate_at_tokens=often)
    assert final_weights(tmp_path / "seldom") == final_weights(tmp_path / "often")


def test_best_weights_are_kept_and_not_the_last(tmp_path: Path) -> None:
    points = [number * TOKENS_PER_STEP for number in range(60)]
    losses: dict[int, float] = {}
    train(
        # Far too high a rate for the end of training: the loss falls first and rises then.
        small_run(learning_rate=0.5, schedule="linear", warmup=1.0, tokens=60 * TOKENS_PER_STEP),
        tmp_path,
        report=lambda values: losses.update({int(values["step"]): values["holdout/loss_nats_per_token"]}) or True,
        evaluate_at_tokens=points,
    )
    best = min(losses, key=losses.__getitem__)
    kept = best_checkpoint(tmp_path)
    assert kept is not None
    assert kept.name == f"best-{best:012d}"
    assert best < 60


def test_settings_that_change_the_result_refuse_the_checkpoint(tmp_path: Path) -> None:
    train(small_run(), tmp_path)
    with pytest.raises(ValueError, match=r"training\.learning_rate is 0.003 there and 0.004 here"):
        train(small_run(learning_rate=4e-3), tmp_path)


def test_micro_batch_may_change_between_parts_of_a_run(tmp_path: Path) -> None:
    train(small_run(), tmp_path, report=lambda values: values["step"] < 6, report_every_s=0.0)
    end = train(small_run(micro_batch_size=4), tmp_path)
    assert (end.outcome, end.micro_batch_size_used) == ("completed", 4)


def test_exploding_training_ends_as_diverged_with_its_numbers(tmp_path: Path) -> None:
    run = small_run(learning_rate=1e4, schedule="constant", warmup=0.0, clip=None)
    end = train(run, tmp_path)
    assert end.outcome == "diverged"
    pattern = r"diverged at step \d+: .*; loss \S+ nats per token, gradient norm \S+, learning rate 1e\+04"
    assert re.match(pattern, end.reason), end.reason
    assert newest_checkpoint(tmp_path) is None


def test_model_that_does_not_fit_is_infeasible_with_the_numbers_in_words(tmp_path: Path) -> None:
    end = train(small_run(), tmp_path, memory_limit_bytes=150_000)
    assert (end.outcome, end.tokens) == ("infeasible", 0)
    pattern = (
        r"out of memory with micro-batches of 8 rows: asked for \S+ KiB more than the memory limit of 146.48 KiB "
        r"allows; \S+ KiB were in use, \S+ KiB were predicted as needed"
    )
    assert re.fullmatch(pattern, end.reason), end.reason
    assert end.oom is not None
    assert end.oom.bytes_asked is not None


def peak_bytes(folder: Path, micro_batch_size: int) -> int:
    end = train(small_run(micro_batch_size=micro_batch_size), folder)
    assert end.peak_memory_bytes is not None
    return end.peak_memory_bytes


@pytest.mark.long
def test_micro_batch_that_does_not_fit_stops_or_shrinks_as_the_user_wants(tmp_path: Path) -> None:
    small, large = (peak_bytes(tmp_path / str(size), size) for size in (4, 16))
    budget = (small + large) // 2
    stopped = train(small_run(micro_batch_size=16, on_oom="stop"), tmp_path / "stop", memory_limit_bytes=budget)
    assert stopped.outcome == "infeasible"
    assert stopped.micro_batch_size_used == 16
    assert "in forward with micro-batches of 16 rows" in stopped.reason
    run = small_run(micro_batch_size=16, on_oom="shrink")
    shrunk = train(run, tmp_path / "shrink", memory_limit_bytes=budget)
    assert shrunk.outcome == "completed"
    assert f"so with micro-batches of {shrunk.micro_batch_size_used} rows instead of 16" in shrunk.reason
    assert shrunk.micro_batch_size_used == largest_micro_batch(run, VOCABULARY.size, memory_bytes=budget)
    assert shrunk.peak_memory_bytes is not None
    assert shrunk.peak_memory_bytes <= budget
    unlimited = train(small_run(micro_batch_size=4), tmp_path / "unlimited")
    assert shrunk.metrics["holdout/loss_nats_per_token"] == pytest.approx(
        unlimited.metrics["holdout/loss_nats_per_token"], rel=1e-4
    )


def test_checkpoint_for_which_there_is_no_memory_is_reported_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: Any, **__: Any) -> None:
        torch.empty(2**50)  # more than any machine has

    monkeypatch.setattr(run_checkpoints, "save_checkpoint", save)
    end = train(small_run(), tmp_path)
    assert end.outcome == "completed"
    # The last checkpoint was tried twice.
    assert [(shortage.facts.phase, shortage.facts.kind, shortage.step) for shortage in end.oom_events] == [
        ("checkpoint", "host", 20)
    ] * 2
    assert end.reason.endswith("; memory ran out 2 times on the way")


@pytest.mark.long
def test_micro_batch_that_a_neighbour_made_impossible_comes_back_when_the_neighbour_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptive_micro_batch, "_STEPS_BEFORE_GROWING", 6)
    run = small_run(micro_batch_size=16, tokens=20 * TOKENS_PER_STEP)
    data = small_corpus(padded=True)  # memory stays watched to the end
    sizes: dict[int, int] = {}
    neighbour = memory_limit(450_000, torch.device("cpu"))

    def report(values: dict[str, float]) -> bool:
        step = int(values["step"])
        sizes[step] = int(values["micro_batch_size"])
        if step == 4:
            neighbour.__enter__()
        if step == 6:
            neighbour.__exit__(None, None, None)
        return True

    arguments: dict[str, Any] = {"workers": Workers(), "evaluate_at_tokens": [], "checkpoint_every_s": None}
    end = run_training(
        run, data, folder=tmp_path / "a", report=report, report_every_s=0.0, memory_limit_bytes=2**30, **arguments
    )
    assert end.outcome == "completed", end.reason
    assert all(shortage.is_neighbours and shortage.step == 4 for shortage in end.oom_events)
    left = [shortage.size for shortage in end.oom_events]
    # Down in as many tries as it took, in one and the same step; up again by the same sizes, six clean steps each.
    stretches = [(size, len(list(steps))) for size, steps in itertools.groupby(sizes.values())]
    assert stretches[:-1] == [(16, 4), (end.oom_events[-1].smaller, 6), *((size, 6) for size in reversed(left[1:]))]
    assert stretches[-1][0] == 16
    clean = run_training(run, data, folder=tmp_path / "b", report=lambda _: True, memory_limit_bytes=2**30, **arguments)
    for key in HOLDOUT_KEYS:
        assert end.metrics[key] == pytest.approx(clean.metrics[key], rel=1e-3), key


def test_memory_is_flat_after_the_steps_that_prove_it(tmp_path: Path) -> None:
    proven = train(small_run(tokens=3 * TOKENS_PER_STEP), tmp_path / "short").peak_memory_bytes
    with memory_limit(None, torch.device("cpu")) as meter:
        train(small_run(), tmp_path / "long", evaluate_at_tokens=[5 * TOKENS_PER_STEP])
    # This meter watches to the end, evaluations and checkpoints included, and sees no more than the run's own.
    assert meter.peak_bytes == pytest.approx(proven, rel=1e-3)


def trained_by(workers: Workers, folder: Path, training: dict[str, Any]) -> RunEnd:
    return train(small_run(family="encoder", **training), folder, workers=workers, report_every_s=0.0)


@pytest.mark.parametrize("training", [{}, {"batch_schedule": {"double_at": [0.3, 0.6]}}], ids=["one batch", "growing"])
def test_two_workers_end_alike_and_as_one_would(training: dict[str, Any], tmp_path: Path) -> None:
    alone = trained_by(Workers(), tmp_path / "alone", training)
    first, second = on_workers(2, trained_by, tmp_path / "together", training)
    assert (first.outcome, first.metrics, first.tokens) == (second.outcome, second.metrics, second.tokens)
    # fp32 sums in another order, enlarged by twenty steps of AdamW.
    for key in HOLDOUT_KEYS:
        assert first.metrics[key] == pytest.approx(alone.metrics[key], rel=1e-4), key


def stopped_on_two(workers: Workers, folder: Path, last_step: int) -> RunEnd:
    def report(values: dict[str, float]) -> bool:
        assert workers.is_first
        return values["step"] < last_step

    return train(small_run(), folder, workers=workers, report=report, report_every_s=0.0)


def test_stop_reaches_all_workers_and_they_go_on_together(tmp_path: Path) -> None:
    ends = on_workers(2, stopped_on_two, tmp_path, 5)
    assert [(end.outcome, end.tokens) for end in ends] == [("stopped", 5 * TOKENS_PER_STEP)] * 2
    ends = on_workers(2, stopped_on_two, tmp_path, 99)
    assert [(end.outcome, end.tokens) for end in ends] == [("completed", 20 * TOKENS_PER_STEP)] * 2


def with_other_settings_on_rank_1(workers: Workers, folder: Path) -> str:
    try:
        train(small_run(seed=workers.rank), folder, workers=workers)
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_rank_whose_model_differs_is_named_before_the_first_step(tmp_path: Path) -> None:
    for message in on_workers(2, with_other_settings_on_rank_1, tmp_path):
        assert "rank 1: other settings" in message


def with_a_caller_that_fails(workers: Workers, folder: Path) -> str:
    def report(_: dict[str, float]) -> bool:
        raise OSError("no space left on device")

    try:
        train(small_run(), folder, workers=workers, report=report, report_every_s=0.0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_failure_of_rank_0_alone_leaves_no_other_rank_waiting(tmp_path: Path) -> None:
    first, second = on_workers(2, with_a_caller_that_fails, tmp_path)
    assert first == "OSError: no space left on device"
    assert second == "OtherRankFailedError: rank 0 of 2 failed; see the error of that rank for the cause"


def test_folder_of_another_run_is_refused_on_all_ranks(tmp_path: Path) -> None:
    train(small_run(learning_rate=1e-4), tmp_path)
    first, second = on_workers(2, refusal, tmp_path)
    assert "training.learning_rate is 0.0001 there and 0.003 here" in first
    assert second == "rank 0 of 2 failed; see the error of that rank for the cause"


def refusal(workers: Workers, folder: Path) -> str:
    try:
        train(small_run(), folder, workers=workers)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "no error"


def infeasible_on_rank_1(workers: Workers, folder: Path, budget: int) -> RunEnd:
    limit = budget if workers.rank == 1 else None
    return train(small_run(on_oom="stop"), folder, workers=workers, memory_limit_bytes=limit)


@pytest.mark.parametrize("budget", [100_000, 400_000])
def test_rank_without_memory_ends_the_run_as_infeasible_on_all(budget: int, tmp_path: Path) -> None:
    for end in on_workers(2, infeasible_on_rank_1, tmp_path, budget):
        assert end.outcome == "infeasible", end
        assert end.oom is not None
        assert end.oom.rank == 1


def test_rows_longer_than_the_model_takes_are_refused(tmp_path: Path) -> None:
    run = small_run().with_overrides({"model.sequence_length": 8})
    with pytest.raises(ValueError, match="rows of the corpus have 16 tokens and the model takes 8"):
        train(run, tmp_path)


def as_checkpoint(folder: Path, _run: RunConfig) -> Path:
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None
    return checkpoint


def as_transformers_folder(folder: Path, run: RunConfig) -> Path:
    model = build_model(run.model, VOCABULARY.size, pad_id=VOCABULARY.pad_id)
    restore_weights(as_checkpoint(folder, run) / "model.safetensors", model)
    config = huggingface_config(run.model, VOCABULARY, VOCABULARY.size)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(to_huggingface(model_tensors(model), run.model), folder / "model.safetensors")
    return folder


def holdout_loss(model: LanguageModel) -> float:
    source = holdout_source(small_corpus(), is_causal=isinstance(model, LlamaDecoder))
    found = evaluate(model, source, Workers(), micro_batch_size=40, precision=Precision("fp32", "cpu"))
    assert isinstance(found, dict)
    return found["holdout/loss_nats_per_token"]


@pytest.mark.parametrize("kept", [as_checkpoint, as_transformers_folder])
@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_next_stage_with_longer_rows_begins_with_the_weights_of_the_one_before(
    family: str, kept: Callable[[Path, RunConfig], Path], tmp_path: Path
) -> None:
    both = small_run(family=family).with_overrides({"model.max_sequence_length": 16})
    first_run = both.with_overrides({"model.sequence_length": 8})
    first = {"folder": tmp_path / "first", "workers": Workers(), "report": lambda _: True, "evaluate_at_tokens": []}
    run_training(first_run, small_corpus(sequence_length=8), **first)  # type: ignore[arg-type]

    model = fresh_model(both, small_corpus(), torch.device("cpu"))
    untrained_loss = holdout_loss(model)
    restore_weights(as_checkpoint(tmp_path / "first", both) / "model.safetensors", model)
    assert holdout_loss(model) < untrained_loss - 0.004  # a hundred times what is allowed below

    reports: list[dict[str, float]] = []
    second_run = both.with_overrides(
        {"training.initial_weights": str(kept(tmp_path / "first", first_run)), "training.learning_rate": 1e-9}
    )
    train(
        second_run,
        tmp_path / "second",
        report=lambda values: reports.append(values) or True,
        evaluate_at_tokens=[1],
    )
    assert reports[0]["holdout/loss_nats_per_token"] == pytest.approx(holdout_loss(model), rel=1e-5)


def test_initial_weights_that_are_missing_or_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    nowhere = small_run(initial_weights=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"training.initial_weights=.*nowhere holds no model.safetensors"):
        train(nowhere, tmp_path / "run")
    train(small_run(), tmp_path / "first")
    wider = small_run(initial_weights=str(as_checkpoint(tmp_path / "first", small_run())))
    with pytest.raises(ValueError, match=r"is of another model: tokens.weight is \(61, 32\) there and \(61, 64\) here"):
        train(wider.with_overrides({"model.width": 64}), tmp_path / "second")


def test_relative_path_of_initial_weights_is_made_absolute_where_the_user_stands() -> None:
    assert small_run(initial_weights="results/best").training.initial_weights == str(Path("results/best").absolute())


def test_step_of_a_mixture_of_experts_reports_its_balance_loss(tmp_path: Path) -> None:
    reports: list[dict[str, float]] = []
    run = small_run(tokens=3 * TOKENS_PER_STEP).with_overrides({"model.feed_forward": "moe"})
    end = train(run, tmp_path, report=lambda values: reports.append(values) or True)
    assert end.outcome == "completed"
    # A weight of 0.01 times at least 1, its value when all experts are used alike; one layer.
    assert 0.01 <= reports[-1]["train/auxiliary_loss"] < 0.05


@pytest.mark.slow
def test_compiled_run_learns_the_same_and_never_compiles_again(tmp_path: Path) -> None:
    plain = train(small_run(micro_batch_size=6), tmp_path / "plain")
    torch._dynamo.utils.counters.clear()
    # Micro-batches of 6, 6 and 4 rows, and evaluation: only the first shape is compiled.
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = train(small_run(micro_batch_size=6, compile=True), tmp_path / "compiled")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert compiled.metrics["holdout/loss_nats_per_token"] == pytest.approx(
        plain.metrics["holdout/loss_nats_per_token"], rel=1e-3
    )


@pytest.mark.long
def test_run_on_a_corpus_prepared_from_text_learns_and_two_workers_agree(tmp_path: Path) -> None:
    data = prepare(
        CorpusConfig(builtin="python-docs"),
        TokenizerConfig(vocabulary=512),
        PackingConfig(sequence_length=32),
        prepared_folder=tmp_path / "prepared",
        run=for_each_parcel_here,
    )
    alone = trained_on(Workers(), data.folder, tmp_path / "alone")
    first, second = on_workers(2, trained_on, data.folder, tmp_path / "together")
    assert alone["holdout/loss_nats_per_token"] < 0.95 * math.log(512)
    assert first == second
    assert first == pytest.approx(alone, rel=2e-3)


def trained_on(workers: Workers, prepared: Path, folder: Path) -> dict[str, float]:
    run = small_run(tokens=30 * 512).with_overrides({"model.sequence_length": 32})
    return run_training(
        run,
        open_prepared(prepared),
        workers=workers,
        folder=folder,
        report=lambda _: True,
        evaluate_at_tokens=[],
        checkpoint_every_s=None,
    ).metrics
