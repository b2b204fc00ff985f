from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from core.distributed.workers import Workers
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.precision import choose_precision
from core.step.evaluation import evaluate, holdout_source
from data_pipeline.schema.corpus_config import TokenizerConfig
from data_pipeline.tokens.token_blocks import PreparedCorpus, Rows, TokenBlocks
from data_pipeline.tokens.tokenizer import train_tokenizer, vocabulary_of
from sweeps.trained_models.sample_outputs import draw_samples, with_brackets

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [f"the {color} {animal} sees a {color} house" for color in ("red", "old", "big") for animal in ("cat", "dog")]


class RowsInMemory:
    """What evaluation reads of `TokenBlocks`."""

    def __init__(self, tokens: NDArray[np.uint16]) -> None:
        self._tokens = tokens
        self.num_rows, self.sequence_length = tokens.shape
        self.num_bytes = self.num_tokens = tokens.size

    def rows(self, row_numbers: NDArray[np.int64]) -> Rows:
        return Rows(self._tokens[row_numbers], np.full(len(row_numbers), self.sequence_length, np.int32), None)


def test_white_space_in_brackets_can_be_seen() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=262, min_frequency=1), ["a b\nc"])
    row = tokenizer.encode("a b\nc", add_special_tokens=False).ids
    newline = tokenizer.encode("\n", add_special_tokens=False).ids[0]
    assert with_brackets(tokenizer, row, {0: newline, len(row) - 1: row[0]}).startswith("⟦⏎⟧")


@pytest.fixture(params=["byte-bpe", "words"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> PreparedCorpus:
    config = TokenizerConfig(kind=request.param, vocabulary=300, min_frequency=1)
    tokenizer = train_tokenizer(config, TEXTS)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    flat = np.array(tokenizer.encode(" ".join(TEXTS), add_special_tokens=False).ids, np.uint16)
    blocks = cast(TokenBlocks, RowsInMemory(flat[: len(flat) // 8 * 8].reshape(-1, 8)))
    return PreparedCorpus(
        folder=tmp_path,
        manifest=cast(Any, None),
        vocabulary=vocabulary_of(tokenizer),
        train=blocks,
        holdout=blocks,
        tokenizer_path=tmp_path / "tokenizer.json",
        fingerprint="f",
    )


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_losses_of_all_samples_average_to_that_of_evaluation(family: Any, corpus: PreparedCorpus) -> None:
    torch.manual_seed(0)
    config = ModelConfig(family=family, layers=1, width=16, heads=2, sequence_length=8)
    model = build_model(config, corpus.vocabulary.size)
    samples = draw_samples(model, corpus, count=corpus.holdout.num_rows)
    source = holdout_source(corpus, is_causal=family == "decoder")
    precision = choose_precision("fp32", torch.device("cpu"))
    metrics = evaluate(model, source, Workers(), micro_batch_size=4, precision=precision)
    assert isinstance(metrics, dict)
    # Full rows without special tokens all predict the same number of tokens, so the mean of means is the mean.
    mean = sum(sample.loss_nats_per_token for sample in samples) / len(samples)
    assert mean == pytest.approx(metrics["holdout/loss_nats_per_token"], rel=1e-5)


def test_brackets_hold_the_hidden_words_and_nothing_else_changes(corpus: PreparedCorpus) -> None:
    config = ModelConfig(layers=1, width=16, heads=2, sequence_length=8)
    samples = draw_samples(build_model(config, corpus.vocabulary.size), corpus, count=4)
    text = " ".join(TEXTS)
    for sample in samples:
        assert "⟦" in sample.text
        assert sample.text.replace("⟦", "").replace("⟧", "").strip() in text
        assert sample.made.count("⟦") == sample.text.count("⟦")


def test_continuation_follows_a_prompt_from_the_holdout(corpus: PreparedCorpus) -> None:
    config = ModelConfig(family="decoder", layers=1, width=16, heads=2, sequence_length=8)
    for sample in draw_samples(build_model(config, corpus.vocabulary.size), corpus, count=2):
        assert sample.text.strip() in " ".join(TEXTS)
        assert sample.made


def test_model_is_left_in_the_mode_it_was_in(corpus: PreparedCorpus) -> None:
    model = build_model(ModelConfig(layers=1, width=16, heads=2, sequence_length=8), corpus.vocabulary.size)
    draw_samples(model, corpus, count=1)
    assert model.training
