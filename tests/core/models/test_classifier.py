"""Classifiers: the logits, losses and gradients of transformers, and the one loop that trains everything."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from core.distributed.workers import Workers
from core.memory_prediction.peak_memory import predict_memory
from core.model_files.checkpoint import model_tensors, newest_checkpoint
from core.model_files.huggingface import export_huggingface, import_huggingface
from core.models.classifier import Classifier, build_classifier, take_encoder
from core.models.huggingface_names import from_huggingface
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.precision import Precision
from core.settings.run_config import RunConfig
from core.step.class_probabilities import class_probabilities
from core.step.objectives import add_gradients
from core.training.training_run import RunEnd, run_training
from data_pipeline.preparation.labelled_rows import LabelledTexts, encode_texts, hold_out, labelled_corpus
from data_pipeline.schema.corpus_config import TokenizerConfig
from data_pipeline.tokens.batches import Batch, BatchSource
from data_pipeline.tokens.token_blocks import PreparedCorpus
from data_pipeline.tokens.tokenizer import Vocabulary, train_tokenizer, vocabulary_of

transformers = pytest.importorskip("transformers", reason="no transformers (pip install transformers)")

CONFIGS = {
    "roberta": ModelConfig(layers=2, width=48, heads=4, sequence_length=24),
    "modern": ModelConfig(form="modern", layers=2, width=64, heads=4, sequence_length=24),
}
CLASSES = ("dns", "http", "tls")
FP32 = Precision("fp32", "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedCorpus:
    """Texts of three classes, each with a word of its own somewhere."""
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(30)]
    found = LabelledTexts("app")
    for number in range(240):
        label = CLASSES[number % 3]
        text = list(rng.choice(words, size=rng.integers(3, 14)))
        text.insert(int(rng.integers(0, len(text))), f"says-{label}")
        found.texts.append(" ".join(text))
        found.labels.append(label)
    tokenizer = train_tokenizer(TokenizerConfig(kind="words", vocabulary=100, min_frequency=1), found.texts)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    vocabulary = vocabulary_of(tokenizer)
    encoded = encode_texts(found.texts, tokenizer, vocabulary, longest=24)
    is_held_out = hold_out(found.texts, found.labels, 0.25)
    return labelled_corpus(found, encoded, is_held_out, vocabulary, tokenizer_path=path, fingerprint="texts")


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[request.param]


def random_classifier(config: ModelConfig, vocabulary: Vocabulary) -> Classifier:
    """Weights far from their start, so that biases and norms matter to the result."""
    torch.manual_seed(0)
    classifier = build_classifier(config, vocabulary.size, len(CLASSES), pad_id=vocabulary.pad_id)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        classifier.tokens.weight[vocabulary.pad_id] = 0
        if config.form == "roberta":
            classifier.positions.weight[vocabulary.pad_id] = 0  # type: ignore[union-attr]
    return classifier


def batch_of(data: PreparedCorpus, num_rows: int = 16) -> Batch:
    source = BatchSource(data.train, data.vocabulary, masking_rate=None, seed=0)
    return source.batch(source.shard(position=0, batch_size=num_rows, rank=0, num_workers=1), 0, num_rows)


def test_exported_folder_gives_equal_logits_loss_and_gradients_in_transformers(
    tmp_path: Path, config: ModelConfig, data: PreparedCorpus
) -> None:
    ours = random_classifier(config, data.vocabulary)
    export_huggingface(ours, config, data.tokenizer_path, data.vocabulary, tmp_path / "hf", classes=CLASSES)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    batch = batch_of(data)
    is_real_BT = (batch.inputs_BT != data.vocabulary.pad_id).long()
    assert (is_real_BT.sum(dim=1) < is_real_BT.shape[1]).any()
    answer = theirs(input_ids=batch.inputs_BT, attention_mask=is_real_BT, labels=batch.labels_P)
    logits_BC = ours.logits(ours.hidden_states(batch.inputs_BT).flatten(0, 1)[batch.positions_P])
    # Two implementations add the same fp32 numbers in another order.
    torch.testing.assert_close(logits_BC, answer.logits, rtol=1e-5, atol=1e-5)
    ours.zero_grad()
    loss_sum, _ = add_gradients(ours, batch, FP32)
    assert float(loss_sum) / len(batch.labels_P) == pytest.approx(answer.loss.item(), rel=1e-5)
    (answer.loss * len(batch.labels_P)).backward()
    named = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    expected = from_huggingface(named, config, is_classifier=True)
    for name, parameter in ours.named_parameters():
        assert isinstance(parameter.grad, Tensor), name
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_folder_read_back_is_the_same_classifier(tmp_path: Path, config: ModelConfig, data: PreparedCorpus) -> None:
    ours = random_classifier(config, data.vocabulary)
    export_huggingface(ours, config, data.tokenizer_path, data.vocabulary, tmp_path, classes=CLASSES)
    loaded = import_huggingface(tmp_path)
    assert loaded.classes == CLASSES
    assert type(loaded.model) is type(ours)
    for name, tensor in model_tensors(ours).items():
        assert torch.equal(model_tensors(loaded.model)[name], tensor), name


def test_classifier_takes_an_encoder_and_keeps_its_own_head(config: ModelConfig, data: PreparedCorpus) -> None:
    encoder = build_model(config, data.vocabulary.size, pad_id=data.vocabulary.pad_id)
    classifier = random_classifier(config, data.vocabulary)
    head = classifier.head_weight.clone()
    take_encoder(classifier, model_tensors(encoder))
    inputs_BT = batch_of(data).inputs_BT
    assert torch.equal(classifier.hidden_states(inputs_BT), encoder.hidden_states(inputs_BT))
    assert torch.equal(classifier.head_weight, head)
    narrower = build_model(config.model_copy(update={"width": 32}), data.vocabulary.size)
    with pytest.raises(ValueError, match="the encoder is of another shape"):
        take_encoder(classifier, model_tensors(narrower))


def classifying(config: ModelConfig, data: PreparedCorpus, **training: object) -> RunConfig:
    lengths = {"sequence_length": data.train.sequence_length, "max_sequence_length": config.num_positions}
    return RunConfig.model_validate(
        {
            "model": config.model_copy(update=lengths),
            "objective": {"classification": {"classes": CLASSES}},
            "training": {"batch_size": 16, "epochs": 8, "learning_rate": 4e-3, "precision": "fp32", **training},
        }
    )


def train(run: RunConfig, data: PreparedCorpus, folder: Path, limit: int | None = None) -> RunEnd:
    end = run_training(
        run,
        data,
        workers=Workers(),
        folder=folder,
        report=lambda _: True,
        evaluate_at_tokens=[],
        memory_limit_bytes=limit,
    )
    assert end.outcome == "completed", end.reason
    return end


def test_classifier_learns_in_the_loop_that_trains_everything(
    tmp_path: Path, config: ModelConfig, data: PreparedCorpus
) -> None:
    end = train(classifying(config, data), data, tmp_path)
    assert end.metrics["holdout/accuracy"] > 0.9, end.metrics  # a third by chance


@pytest.mark.parametrize("vocabulary_size", [None, 60_000], ids=["own vocabulary", "large vocabulary"])
def test_peak_memory_of_a_classifier_is_predicted(
    tmp_path: Path, config: ModelConfig, data: PreparedCorpus, vocabulary_size: int | None
) -> None:
    # Models have more rows of embeddings than this tokenizer has tokens; the classes stay as few as they are.
    vocabulary = replace(data.vocabulary, size=vocabulary_size or data.vocabulary.size)
    data = replace(data, vocabulary=vocabulary)
    run = classifying(config, data, epochs=0.3, micro_batch_size=8)
    predicted = predict_memory(run, vocabulary.size, micro_batch_size=8).peak_bytes
    end = train(run, data, tmp_path, limit=2 * predicted)
    assert predicted == end.peak_memory_bytes


@pytest.mark.long
def test_running_out_of_memory_changes_nothing_in_what_a_classifier_learns(
    tmp_path: Path, data: PreparedCorpus
) -> None:
    run = classifying(CONFIGS["roberta"], data, epochs=1, micro_batch_size=16)
    needs = [predict_memory(run, data.vocabulary.size, micro_batch_size=size).peak_bytes for size in (16, 4)]
    train(run, data, tmp_path / "free")
    end = train(run, data, tmp_path / "short", limit=(needs[0] + needs[1]) // 2)
    assert end.oom_events
    free, short = (
        load_file((newest_checkpoint(tmp_path / name) or Path()) / "model.safetensors") for name in ("free", "short")
    )
    for name in free:
        # Smaller micro-batches add up in another order; AdamW makes that larger where gradients are nearly zero.
        torch.testing.assert_close(short[name], free[name], rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_probabilities_do_not_depend_on_how_many_rows_go_at_once(config: ModelConfig, data: PreparedCorpus) -> None:
    classifier = random_classifier(config, data.vocabulary)
    source = BatchSource(data.holdout, data.vocabulary, masking_rate=None, seed=0, shuffle=False)
    one, many = (class_probabilities(classifier, source, rows_at_once=rows, precision=FP32) for rows in (1, 50))
    assert one.shape == (data.holdout.num_rows, len(CLASSES))
    torch.testing.assert_close(one, many, rtol=0, atol=1e-5)
