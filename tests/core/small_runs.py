"""A training run of seconds, and the weights that it ends with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_corpus import small_corpus

from core.distributed.workers import Workers
from core.model_files.checkpoint import newest_checkpoint
from core.settings.run_config import RunConfig
from core.training.run_end import RunEnd
from core.training.training_run import run_training

TOKENS_PER_STEP = 16 * 16


def small_run(*, family: str = "decoder", **training: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"family": family, "layers": 1, "width": 32, "heads": 2, "sequence_length": 16},
            "objective": "causal_lm" if family == "decoder" else "masked_lm",
            "training": {
                "batch_size": 16,
                "micro_batch_size": 8,
                "tokens": 20 * TOKENS_PER_STEP,
                "learning_rate": 3e-3,
                "precision": "fp32",
                **training,
            },
        }
    )


def train(
    run: RunConfig,
    folder: Path,
    *,
    report: Callable[[dict[str, float]], bool] = lambda _: True,
    workers: Workers | None = None,
    **arguments: Any,
) -> RunEnd:
    settings: dict[str, Any] = {
        "evaluate_at_tokens": [],
        "checkpoint_every_s": None,
        "report_every_s": 1e9,
        **arguments,
    }
    return run_training(run, small_corpus(), workers=workers or Workers(), folder=folder, report=report, **settings)


def final_weights(folder: Path) -> bytes:
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None
    return (checkpoint / "model.safetensors").read_bytes() + (checkpoint / "optimizer.safetensors").read_bytes()
