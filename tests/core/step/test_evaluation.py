"""Metrics against scikit-learn and plain arithmetic, exact whatever the micro-batch and the number of workers."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from small_corpus import VOCABULARY, small_corpus
from small_steps import a_step, train
from two_workers import on_workers

from core.distributed.workers import Workers
from core.memory.memory_limit import memory_limit
from core.memory.out_of_memory import OomFacts
from core.models.language_model import LanguageModel
from core.settings.precision import Precision
from core.step.evaluation import evaluate, holdout_source
from core.step.holdout_masks import MASKING_RATE
from core.step.objectives import summed_loss
from data_pipeline.tokens.batches import BatchSource

torch.set_num_threads(1)
FP32 = Precision("fp32", "cpu")


@lru_cache
def trained_model(family: str, num_steps: int = 5) -> LanguageModel:
    """One for all tests: evaluation changes nothing in it."""
    step = a_step(Workers(), micro_batch_size=16, family=family)
    train(step, num_steps=num_steps)
    return step.model


def metrics_of(workers: Workers, family: str, micro_batch_size: int, **options: Any) -> dict[str, float]:
    source = holdout_source(small_corpus(padded=True), is_causal=family == "decoder")
    found = evaluate(
        trained_model(family), source, workers, micro_batch_size=micro_batch_size, precision=FP32, **options
    )
    assert isinstance(found, dict)
    return found


def predictions(family: str) -> tuple[np.ndarray, np.ndarray, BatchSource]:
    """(logits, labels) of all predicted positions of the holdout."""
    source = holdout_source(small_corpus(padded=True), is_causal=family == "decoder")
    shard = source.shard(position=0, batch_size=source.num_rows, rank=0, num_workers=1)
    batch = source.batch(shard, 0, source.num_rows)
    model = trained_model(family)
    with torch.no_grad():
        logits = model(batch.inputs_BT).flatten(0, 1)[batch.positions_P]
    return logits.numpy(), batch.labels_P.numpy(), source


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_metrics_are_those_of_scikit_learn(family: str) -> None:
    found = metrics_of(Workers(), family, 7)
    logits, labels, source = predictions(family)
    likeliest = logits.argmax(-1)
    loss = sklearn_metrics.log_loss(
        labels, torch.from_numpy(logits).softmax(-1).numpy(), labels=np.arange(VOCABULARY.size)
    )
    assert found["holdout/loss_nats_per_token"] == pytest.approx(loss, rel=1e-6)
    losses = -torch.from_numpy(logits).double().log_softmax(-1).numpy()[np.arange(len(labels)), labels]
    # fp32 losses, and a difference of squares.
    assert found["holdout/loss_standard_error"] == pytest.approx(losses.std() / math.sqrt(len(labels)), rel=1e-5)
    assert found["holdout/accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, likeliest))
    assert found["holdout/macro_f1"] == pytest.approx(sklearn_metrics.f1_score(labels, likeliest, average="macro"))
    top10 = sklearn_metrics.top_k_accuracy_score(labels, logits, k=10, labels=np.arange(VOCABULARY.size))
    assert found["holdout/top10_accuracy"] == pytest.approx(top10)
    assert found["holdout/perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    bits = loss / math.log(2) * source.blocks.num_tokens / source.blocks.num_bytes
    assert found["holdout/bits_per_byte"] == pytest.approx(bits, rel=1e-6)


@pytest.mark.parametrize("family", ["encoder", "decoder"])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 40, 100])
def test_metrics_do_not_depend_on_the_micro_batch(family: str, micro_batch_size: int) -> None:
    # Sums of fp32 losses in fp64.
    assert metrics_of(Workers(), family, micro_batch_size) == pytest.approx(metrics_of(Workers(), family, 7), rel=1e-6)


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_metrics_do_not_depend_on_the_number_of_workers(family: str) -> None:
    first, second = on_workers(2, metrics_of, family, 7)
    assert first == second
    assert first == pytest.approx(metrics_of(Workers(), family, 7), rel=1e-6)


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_teacher_forced_evaluation_is_the_training_loss_on_the_same_rows(family: str) -> None:
    model = trained_model(family)
    source = holdout_source(small_corpus(padded=True), is_causal=family == "decoder")
    shard = source.shard(position=0, batch_size=source.num_rows, rank=0, num_workers=1)
    loss_sum, num_predicted = summed_loss(model, source.batch(shard, 0, source.num_rows), FP32)
    found = metrics_of(Workers(), family, 7)
    assert found["holdout/loss_nats_per_token"] == pytest.approx(loss_sum.item() / num_predicted, rel=1e-6)


def test_accuracy_over_all_tokens_counts_every_token_that_is_not_padding() -> None:
    found = metrics_of(Workers(), "encoder", 7, all_tokens=True)
    source = holdout_source(small_corpus(padded=True), is_causal=False)
    shard = source.shard(position=0, batch_size=source.num_rows, rank=0, num_workers=1)
    batch = source.batch(shard, 0, source.num_rows)
    truth = source.blocks.rows(shard.row_numbers)
    model = trained_model("encoder")
    with torch.no_grad():
        likeliest = model(batch.inputs_BT).argmax(-1).numpy()
    is_right = (likeliest == truth.tokens) & truth.is_real()
    assert found["holdout/all_tokens_accuracy"] == pytest.approx(is_right.sum() / truth.num_tokens.sum())
    assert {key: found[key] for key in metrics_of(Workers(), "encoder", 7)} == metrics_of(Workers(), "encoder", 7)


def test_holdout_is_masked_the_same_whatever_the_training_settings() -> None:
    source = holdout_source(small_corpus(), is_causal=False)
    assert source.masking_rate == MASKING_RATE == 0.15
    shards = [source.shard(position=0, batch_size=40, rank=0, num_workers=1) for _ in range(2)]
    batches = [source.batch(shard, 0, 40) for shard in shards]
    assert torch.equal(batches[0].inputs_BT, batches[1].inputs_BT)
    assert list(shards[0].row_numbers) == list(range(40))


def test_evaluation_leaves_the_model_in_training_mode() -> None:
    model = trained_model("encoder")
    evaluate(
        model,
        holdout_source(small_corpus(), is_causal=False),
        Workers(),
        micro_batch_size=8,
        precision=FP32,
    )
    assert model.training


def test_evaluation_that_does_not_fit_says_so_and_a_smaller_one_fits() -> None:
    model = trained_model("decoder")
    source = holdout_source(small_corpus(), is_causal=True)
    with memory_limit(400_000, torch.device("cpu")):
        facts = evaluate(model, source, Workers(), micro_batch_size=40, precision=FP32)
    assert isinstance(facts, OomFacts)
    assert facts.phase == "evaluation"
    with memory_limit(400_000, torch.device("cpu")):
        assert isinstance(evaluate(model, source, Workers(), micro_batch_size=1, precision=FP32), dict)
