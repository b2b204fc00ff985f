"""Final losses of optimizers on a small job: AdamW, Muon with AdamW, schedule-free AdamW.

    python tests/benchmarks/optimizers.py [--quick] [--tokens 1M] [--processes 2]

A decoder of 2 layers, 128 wide, reads English books (../shared/data; without them, the documentation of Python) in rows
of 64, 16 a step. Each optimizer has a grid of learning rates, a factor of two apart, and each rate as many seeds. The
loss is the holdout's, in nats per token. Schedule-free AdamW (arXiv:2405.15682) exists only here: a product setting
needs a gain over AdamW with `wsd`. `gain`: AdamW's best mean loss minus that of the other; the noise is the standard
error of that difference. Speed is tokens per second of processor time, updates included. The last line is JSON.

--quick: few steps, below a minute. Otherwise some twenty minutes on two cores.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.distributed.workers import Workers
from core.model_files.initial_weights import fresh_model
from core.models.language_model import LanguageModel
from core.settings.precision import choose_precision
from core.settings.run_config import RunConfig
from core.settings.schedule import learning_rate
from core.step.evaluation import evaluate, holdout_source
from core.step.optimizer import build_optimizer
from core.step.optimizer_step import OptimizerStep, StepResult
from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.schema.settings import parse_count
from data_pipeline.tokens.batches import BatchSource
from data_pipeline.tokens.token_blocks import PreparedCorpus

BOOKS = Path(__file__).resolve().parents[3] / "shared/data/english/books"
ROW_TOKENS = 64
SCHEDULE_FREE = "schedule-free"
GRIDS: dict[str, tuple[float, ...]] = {
    "adamw": (3e-3, 6e-3, 12e-3, 24e-3),
    "muon": (3e-3, 6e-3, 12e-3, 24e-3),
    SCHEDULE_FREE: (6e-3, 12e-3, 24e-3),
}


@dataclass(frozen=True)
class Trained:
    """End of one training."""

    loss: float
    """Nats per token of the holdout; infinite if the training diverged."""
    tokens_per_s: float
    """Tokens per second of processor time."""


def prepared_text(folder: Path, *, vocabulary: int, row_tokens: int = ROW_TOKENS) -> PreparedCorpus:
    """The token blocks of the benchmark's text, made in this folder unless they are there."""
    corpus = (
        CorpusConfig(path=f"{BOOKS}/*.txt", documents="paragraphs", holdout=0.01)
        if BOOKS.is_dir()
        else CorpusConfig(builtin="python-docs", holdout=0.05)
    )
    return prepare(
        corpus,
        TokenizerConfig(vocabulary=vocabulary),
        PackingConfig(sequence_length=row_tokens),
        prepared_folder=folder,
        run=for_each_parcel_here,
    )


def decoder_run(*, width: int, rate: float, seed: int, batch_size: int = 16, **changes: Any) -> RunConfig:
    """A small decoder; changes name fields of the training, or `model` those of the model."""
    model = {"family": "decoder", "layers": 2, "width": width, "heads": max(1, width // 32)}
    training = {
        "batch_size": batch_size, "learning_rate": rate, "seed": seed, "precision": "fp32", "warmup": 0.05,
        "cooldown": 0.2,
    }  # fmt: skip
    return RunConfig.model_validate(
        {
            "model": model | {"sequence_length": ROW_TOKENS} | changes.pop("model", {}),
            "objective": {"causal_lm": {}},
            "training": training | changes,
        }
    )


def train(run: RunConfig, data: PreparedCorpus, *, tokens: int, is_schedule_free: bool = False) -> Trained:
    """Train through the core's own step and evaluate on the whole holdout."""
    training = run.training
    model = fresh_model(run, data, torch.device("cpu"))
    workers, precision = Workers(), choose_precision(training.precision, torch.device("cpu"))
    tokens_per_step = training.batch_size * data.train.num_tokens / data.train.num_rows
    plain = build_optimizer(model, training, tokens_per_step=tokens_per_step, precision=precision)
    free = ScheduleFreeAdamW(plain, beta=training.beta1, beta2=training.beta2) if is_schedule_free else None
    step = OptimizerStep(
        model,
        free or plain,
        BatchSource(data.train, data.vocabulary, masking_rate=None, seed=training.seed, shuffle=True),
        workers,
        precision,
        batch_size=training.batch_size,
        micro_batch_size=training.batch_size,
        tokens_per_step=tokens_per_step,
        clip=training.clip,
    )
    num_steps = math.ceil(tokens / tokens_per_step)
    began_at = time.process_time()
    for number in range(num_steps):
        rate = learning_rate(training, tokens=number + 0.5, total_tokens=num_steps)
        result = step.take(step=number, position=number * step.batch_size, learning_rate=lambda _: rate)  # noqa: B023
        assert isinstance(result, StepResult), result
        if not result.is_applied:
            return Trained(math.inf, 0.0)
    seconds = time.process_time() - began_at
    if free is not None:
        free.put_averages()
    return Trained(holdout_loss(model, data), num_steps * tokens_per_step / seconds)


def holdout_loss(model: LanguageModel, data: PreparedCorpus) -> float:
    """Nats per token of the whole holdout."""
    precision = choose_precision("fp32", torch.device("cpu"))
    source = holdout_source(data, is_causal=True)
    metrics = evaluate(model, source, Workers(), micro_batch_size=64, precision=precision)
    assert isinstance(metrics, dict), metrics
    return metrics["holdout/loss_nats_per_token"]


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """AdamW whose answer is a running average of its iterates, at a constant rate after the warm-up.

    The parameters hold y = (1 - beta) z + beta x: z takes Adam's steps, x is their average.

    Source: arXiv:2405.15682, algorithm 1, with the weights of the authors' code (squares of the rate).
    """

    def __init__(self, plain: torch.optim.Optimizer, *, beta: float, beta2: float) -> None:
        super().__init__(plain.param_groups, {})
        self._beta, self._beta2, self._steps, self._weights = beta, beta2, 0, 0.0
        for group in self.param_groups:
            for y in group["params"]:
                self.state[y] = {"z": y.detach().clone(), "x": y.detach().clone(), "square": torch.zeros_like(y)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "a step here never computes the loss again"
        self._steps += 1
        rate = float(self.param_groups[0]["lr"])
        self._weights += rate**2
        share = rate**2 / self._weights
        for group in self.param_groups:
            for y in group["params"]:
                z, x, square = (self.state[y][name] for name in ("z", "x", "square"))
                square.mul_(self._beta2).addcmul_(y.grad, y.grad, value=1 - self._beta2)
                denominator = (square / (1 - self._beta2**self._steps)).sqrt_().add_(1e-8)
                z.addcdiv_(y.grad, denominator, value=-rate).add_(y, alpha=-rate * group["weight_decay"])
                x.lerp_(z, share)
                y.copy_(torch.lerp(z, x, self._beta))

    @torch.no_grad()
    def put_averages(self) -> None:
        """Put the average into the parameters, for the evaluation."""
        for group in self.param_groups:
            for y in group["params"]:
                y.copy_(self.state[y]["x"])


def _one(case: tuple[str, float, int], *, folder: Path, vocabulary: int, width: int, tokens: int) -> Trained:
    torch.set_num_threads(1)
    name, rate, seed = case
    is_free = name == SCHEDULE_FREE
    changes: dict[str, Any] = {"schedule": "constant"} if is_free else {"optimizer": name}
    run = decoder_run(width=width, rate=rate, seed=seed, **changes)
    data = prepared_text(folder, vocabulary=vocabulary)
    return train(run, data, tokens=tokens, is_schedule_free=is_free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tokens", default="1M")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    tokens, seeds = (40_000, (0, 1)) if asked.quick else (int(parse_count(asked.tokens)), (0, 1))
    grids = {name: rates[1:2] if asked.quick else rates for name, rates in GRIDS.items()}
    cases = [(name, rate, seed) for name, rates in grids.items() for rate, seed in product(rates, seeds)]
    with tempfile.TemporaryDirectory() as temporary:
        size = {"vocabulary": 1000, "width": 32 if asked.quick else 128}
        prepared_text(Path(temporary), vocabulary=size["vocabulary"])
        one = partial(_one, folder=Path(temporary), tokens=tokens, **size)
        with ProcessPoolExecutor(asked.processes, mp_context=get_context("spawn")) as pool:
            ends = {}
            for case, end in zip(cases, pool.map(one, cases), strict=True):
                ends[case] = end
                print(f"{case[0]}, rate {case[1]:g}, seed {case[2]}: loss {end.loss:.4f}", file=sys.stderr, flush=True)
    print(f"{'optimizer':<15}{'rate':>8}{'mean loss':>11}   losses of seeds      tokens/s")
    best: dict[str, list[float]] = {}
    speeds: dict[str, float] = {}
    for name, rates in grids.items():
        for rate in rates:
            found = [ends[name, rate, seed] for seed in seeds]
            losses = [end.loss for end in found]
            speeds[name] = max(speeds.get(name, 0.0), *(end.tokens_per_s for end in found))
            print(
                f"{name:<15}{rate:>8g}{statistics.fmean(losses):>11.4f}   "
                f"{' '.join(f'{loss:.4f}' for loss in losses):<20}{speeds[name]:>9,.0f}"
            )
            if name not in best or statistics.fmean(losses) < statistics.fmean(best[name]):
                best[name] = losses
    ratios = {}
    for name in ("muon", SCHEDULE_FREE):
        gain = statistics.fmean(best["adamw"]) - statistics.fmean(best[name])
        noise = math.sqrt(sum(statistics.variance(best[one]) / len(seeds) for one in ("adamw", name)))
        print(f"gain of {name}: {gain:.4f} nats (standard error of seeds {noise:.4f})")
        ratios[f"{name}_gain_nats"] = round(gain, 4)
        ratios[f"{name}_speed"] = round(speeds[name] / speeds["adamw"], 3)
    print(json.dumps({"benchmark": "optimizers", "ratios": ratios, "quick": asked.quick}))


if __name__ == "__main__":
    main()
