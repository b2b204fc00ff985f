"""The probe gives what scikit-learn gives on features that a model gives each text alone."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_packets import write_packets
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_corpus import small_corpus
from small_runs import small_run

from core.distributed.workers import Workers
from core.memory_prediction.peak_memory import WorkerSetup, predict_memory
from core.models.language_model import LanguageModel
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.training.training_run import run_training
from data_pipeline.schema.corpus_config import TokenizerConfig
from data_pipeline.tokens.tokenizer import train_tokenizer, vocabulary_of
from sweeps.settings.metric_config import TaskConfig
from sweeps.tasks.labelled_tasks import TaskRows, encode_task, read_tasks
from sweeps.tasks.linear_probe import TaskProbes, probe

LENGTH = 32


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TaskRows:
    path = write_packets(tmp_path_factory.mktemp("packets") / "packets.csv", 90)
    (found,) = read_tasks([TaskConfig(name="protocol", path=str(path), label="protocol")])
    tokenizer = train_tokenizer(TokenizerConfig(kind="words", vocabulary=400, min_frequency=1), found.texts)
    return encode_task(found, tokenizer, vocabulary_of(tokenizer), sequence_length=LENGTH)


def model_of(family: str) -> LanguageModel:
    torch.manual_seed(0)
    shape = {"family": family, "layers": 1, "width": 32, "heads": 2, "sequence_length": LENGTH}
    return build_model(ModelConfig.model_validate(shape), 400).eval()


def features_one_by_one(model: LanguageModel, task: TaskRows) -> np.ndarray:
    """Mean hidden state of each text, without padding and without other texts."""
    with torch.no_grad():
        return np.stack(
            [model.hidden_states(torch.from_numpy(row.astype(np.int64))[None]).mean(dim=(0, 1)) for row in task.tokens]
        )


@pytest.mark.parametrize("family", ["encoder", "decoder"])
@pytest.mark.parametrize("num_rows", [1, 7, 64])
def test_the_metrics_are_those_of_scikit_learn_on_features_of_each_text_alone(
    family: str, num_rows: int, task: TaskRows, one_thread: None
) -> None:
    model = model_of(family)
    found = TaskProbes([task], sequence_length=LENGTH).metrics(model, num_rows, lambda: None)
    vectors, tests = features_one_by_one(model, task).astype(np.float64), task.is_test
    reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    predicted = reference.fit(vectors[~tests], task.labels[~tests]).predict(vectors[tests])
    accuracy = (predicted == task.labels[tests]).mean()
    # Padding and the order of sums move features by about 1e-6, which moves no row of these across a boundary.
    assert found == pytest.approx(
        {
            "task/protocol/accuracy": accuracy,
            "task/protocol/accuracy_standard_error": math.sqrt(accuracy * (1 - accuracy) / tests.sum()),
            "task/protocol/macro_f1": f1_score(task.labels[tests], predicted, average="macro"),
        }
    )
    assert found["task/protocol/accuracy"] > 0.8, "an embedding of ports and protocol numbers tells them apart"


def test_equal_features_give_equal_figures(task: TaskRows, one_thread: None) -> None:
    vectors = features_one_by_one(model_of("encoder"), task)
    assert probe(vectors, task) == probe(vectors.copy(), task)


def test_labels_that_features_say_nothing_of_are_not_learnt(task: TaskRows) -> None:
    noise = np.random.default_rng(0).standard_normal((len(task.labels), 4)).astype(np.float32)
    # Chance is a third; 27 test rows scatter around it by 0.09 (one standard deviation).
    assert probe(noise, task)["accuracy"] < 0.65


def test_features_that_are_not_finite_have_no_figure(task: TaskRows) -> None:
    vectors = np.full((len(task.labels), 4), np.nan, np.float32)
    assert all(math.isnan(value) for value in probe(vectors, task).values())


def test_texts_longer_than_rows_of_training_pass_in_smaller_batches(task: TaskRows) -> None:
    seen: list[tuple[int, ...]] = []

    class Watched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = model_of("encoder").tokens

        def hidden_states(self, inputs_BT: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(inputs_BT.shape))
            return torch.zeros(*inputs_BT.shape, 32)

    probes = TaskProbes([task], sequence_length=8)
    probes.metrics(Watched(), 16, lambda: None)  # type: ignore[arg-type]
    longest = max(map(len, task.tokens))
    assert max(rows for rows, _ in seen) == 16 * 8 // longest
    assert sum(rows for rows, _ in seen) == len(task.tokens)
    seen.clear()
    probes.rehearse(Watched(), 16)  # type: ignore[arg-type]
    assert seen == [(16 * 8 // longest, longest)]


def test_a_stop_is_heard_between_two_passes(task: TaskRows) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TaskProbes([task], sequence_length=LENGTH).metrics(model_of("encoder"), 8, stop)


def test_a_text_is_cut_to_the_length_of_the_task(tmp_path: Path) -> None:
    path = write_packets(tmp_path / "packets.csv", 30)
    (found,) = read_tasks([TaskConfig(name="t", path=str(path), label="protocol", max_tokens=9)])
    tokenizer = train_tokenizer(TokenizerConfig(kind="words", vocabulary=400, min_frequency=1), found.texts)
    rows = encode_task(found, tokenizer, vocabulary_of(tokenizer), sequence_length=LENGTH)
    assert {len(row) for row in rows.tokens} == {9}


@pytest.mark.long
@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_a_run_with_exactly_the_predicted_memory_has_room_for_the_probes(
    family: str, task: TaskRows, tmp_path: Path, one_thread: None
) -> None:
    data = small_corpus()
    run = small_run(family=family)
    length = run.model.sequence_length
    # The task's own ids: the model's vocabulary is smaller.
    short = replace(task, tokens=tuple(row[:length] % data.vocabulary.size for row in task.tokens))
    peak = predict_memory(run, data.vocabulary.size, micro_batch_size=8, setup=WorkerSetup()).peak_bytes
    end = run_training(
        run,
        data,
        workers=Workers(),
        folder=tmp_path,
        report=lambda _: True,
        evaluate_at_tokens=[],
        memory_limit_bytes=peak,
        judge=TaskProbes([short], sequence_length=length),
    )
    assert (end.outcome, end.oom_events) == ("completed", ())
    assert "task/protocol/accuracy" in end.metrics
