"""The classes in tests/examples train: they learn, resume as uninterrupted, and need the predicted memory."""

from pathlib import Path
from typing import Any

import pytest
from given_classes import EXAMPLES, permitted, run_of, written
from small_corpus import VOCABULARY
from small_runs import final_weights, train

from core.memory_prediction.peak_memory import predict_memory
from core.settings.run_config import RunConfig

KINDS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "fast path": ("model_no_feed.py:NoFeed", {"dim": 32, "layers": 1, "heads": 2, "kv_heads": 1}, False),
    "simple path": ("gated_mixer.py:GatedMixer", {"width": 32, "layers": 1}, False),
    "transformers": (
        "wrapped_bert.py:WrappedBert",
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
        True,
    ),
}


def example_run(kind: str, **training: Any) -> RunConfig:
    path, arguments, is_masked = KINDS[kind]
    return run_of(permitted(path, EXAMPLES), arguments, masked=is_masked, **training)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_learns_in_the_predicted_memory(kind: str, tmp_path: Path) -> None:
    losses: list[float] = []

    def note(report: dict[str, float]) -> bool:
        losses.extend(value for name, value in report.items() if name == "holdout/loss_nats_per_token")
        return True

    run = example_run(kind, tokens=100 * 256, learning_rate=1e-2)
    end = train(run, tmp_path, report=note, evaluate_at_tokens=[1], memory_limit_bytes=2**30)
    assert end.outcome == "completed"
    assert losses[-1] < losses[0] - 0.1
    predicted = predict_memory(run, VOCABULARY.size, micro_batch_size=8).peak_bytes
    # Masks draw other numbers of positions than a full row predicts.
    assert abs(end.peak_memory_bytes - predicted) <= 0.02 * predicted


@pytest.mark.parametrize("kind", ["fast path", "simple path"])
def test_a_resumed_run_of_a_class_equals_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    run = example_run(kind)
    train(run, tmp_path / "whole")
    train(run, tmp_path / "parts", report=lambda report: report["tokens"] < 2000, report_every_s=0.0)
    train(run, tmp_path / "parts")
    assert final_weights(tmp_path / "parts") == final_weights(tmp_path / "whole")


def test_a_class_survives_running_out_of_memory_with_a_smaller_micro_batch(tmp_path: Path) -> None:
    run = example_run("simple path", micro_batch_size=16)
    needed = [predict_memory(run, VOCABULARY.size, micro_batch_size=rows).peak_bytes for rows in (4, 16)]
    end = train(run, tmp_path, memory_limit_bytes=(needed[0] + needed[1]) // 2)
    assert end.outcome == "completed"
    assert end.micro_batch_size_used < 16


def test_a_class_that_cannot_be_traced_trains_and_survives_running_out(tmp_path: Path) -> None:
    written(tmp_path, "class Mine(Base):\n    def mix(self, x):\n        return x if x.sum() > 1e9 else -x")
    run = run_of(permitted("mine.py:Mine", tmp_path), micro_batch_size=16)
    needed = [predict_memory(run, VOCABULARY.size, micro_batch_size=rows).peak_bytes for rows in (4, 8)]
    end = train(run, tmp_path / "run", memory_limit_bytes=sum(needed) // 2)
    assert end.outcome == "completed"
    assert end.micro_batch_size_used < 16
