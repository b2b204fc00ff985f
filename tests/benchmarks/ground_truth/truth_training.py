"""One training of the ground truth, by the core's own loop: its trunk, its branches and its averaged weights."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from truth_jobs import AVERAGED, SHARES, TRUNK_POINTS, Job, Setting, at_step, branch_steps

from core.distributed.workers import Workers
from core.model_files.initial_weights import fresh_model
from core.settings.cooldown_branch import Pause
from core.settings.precision import choose_precision
from core.step.evaluation import evaluate, holdout_source
from core.training.training_run import run_training
from data_pipeline.tokens.token_blocks import PreparedCorpus

_LOSS = "holdout/loss_nats_per_token"
_ROWS_AT_ONCE = 256

FIRST_COLUMNS = ("learning_rate", "batch_rows")
FACTS = (
    "seed", "outcome", "diverged_at_tokens", "steps", "trunk_tokens", "branch_tokens", "processor_s", "peak_bytes",
)  # fmt: skip
ANNEALED = tuple(f"annealed_1_{round(1 / share)}" for share in SHARES)
AVERAGES = tuple(f"averaged_1_{round(1 / share)}" for share in SHARES)
TRUNK = tuple(f"trunk_{number}_{TRUNK_POINTS}" for number in range(1, TRUNK_POINTS + 1))


def columns(job: Job) -> tuple[str, ...]:
    """Columns of the table of a job, in order."""
    return (*FIRST_COLUMNS, job.third, *FACTS, *ANNEALED, *AVERAGES, *TRUNK)


def train(job: Job, setting: Setting, *, seed: int, data: PreparedCorpus, folder: Path) -> dict[str, Any]:
    """The row of the table: one trunk, a branch for each share of the length, and the averages.

    Args:
        folder: An empty folder for the checkpoints of the run.
    """
    torch.set_num_threads(1)
    run = job.run_config(setting, seed=seed)
    num_steps = job.steps(setting)
    watch = _TrunkWatch(job, setting, seed=seed, data=data)
    row: dict[str, Any] = {
        "learning_rate": setting.learning_rate, "batch_rows": setting.batch_rows, job.third: setting.third,
        "seed": seed, "outcome": "completed", "diverged_at_tokens": None, "steps": num_steps,
    }  # fmt: skip
    branch_tokens, peak_bytes, tokens = 0, 0, 0
    began_at = time.process_time()
    pauses: list[Pause | None] = [_pause(job, setting, round(share * num_steps)) for share in SHARES]
    for name, pause in zip([*ANNEALED, None], [*pauses, None], strict=True):
        with watch.listening():
            end = run_training(
                run,
                data,
                workers=Workers(),
                folder=folder,
                report=lambda _: True,
                evaluate_at_tokens=(),
                checkpoint_every_s=None,
                report_every_s=math.inf,
                pause=pause,
            )
        peak_bytes, tokens = max(peak_bytes, end.peak_memory_bytes or 0), end.tokens
        if end.branch is not None and name is not None:
            branch_tokens += end.branch.tokens
            row[name] = _in_table(end.branch.metrics[_LOSS])
        if end.outcome == "diverged" and not watch.is_in_branch:
            row |= {"outcome": "diverged", "diverged_at_tokens": end.tokens}
            break
        if end.outcome not in ("paused", "completed", "diverged"):
            raise RuntimeError(f"{job.name}, {setting}: {end.outcome}, {end.reason}")
    return row | {name: _in_table(loss) for name, loss in watch.losses.items()} | {
        "trunk_tokens": tokens, "branch_tokens": branch_tokens, "processor_s": round(time.process_time() - began_at, 2),
        "peak_bytes": peak_bytes,
    }  # fmt: skip


def _in_table(loss: float) -> float | None:
    """To a ten-thousandth of a nat, far below the deviation between seeds; None unless it is finite."""
    return round(loss, 4) if math.isfinite(loss) else None


def _pause(job: Job, setting: Setting, length_steps: int) -> Pause:
    """The pause whose branch ends after `length_steps` steps in all."""
    branch = branch_steps(length_steps)
    return Pause(at_step(job, setting, length_steps - branch), at_step(job, setting, branch))


class _TrunkWatch:
    """Follows the weights of the trunk from step to step: losses at its points, and of averaged weights.

    The core tells nobody the weights after a step, so the optimizer's own hook is used. A step of a branch is known by
    its learning rate, which falls; that of a trunk never does.
    """

    def __init__(self, job: Job, setting: Setting, *, seed: int, data: PreparedCorpus) -> None:
        run = job.run_config(setting, seed=seed)
        self.losses: dict[str, float] = {}
        self.is_in_branch = False
        self._model = fresh_model(run, data, torch.device("cpu"))
        self._copies = _in_order_of_groups(list(self._model.parameters()))
        self._sums = [torch.zeros_like(parameter) for parameter in self._copies]
        self._num_summed = 0
        self._source = holdout_source(data, is_causal=job.is_causal)
        self._precision = choose_precision("fp32", torch.device("cpu"))
        self._step = 0
        self._last_rate = 0.0
        steps = job.steps(setting)
        self._points = {math.ceil(number * steps / TRUNK_POINTS): name for number, name in enumerate(TRUNK, start=1)}
        self._averages = {round(share * steps): name for share, name in zip(SHARES, AVERAGES, strict=True)}
        self._averaged_steps = {
            step
            for length in self._averages
            for step in range(length - max(1, round(AVERAGED * length)) + 1, length + 1)
        }

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Follow the steps of the one run inside."""
        self.is_in_branch, self._last_rate = False, 0.0
        handle = register_optimizer_step_post_hook(self._after_step)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, _: Any, __: Any) -> None:
        rate = float(optimizer.param_groups[0]["lr"])
        self.is_in_branch = self.is_in_branch or rate < self._last_rate
        self._last_rate = rate
        if self.is_in_branch:
            return
        self._step += 1
        weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self._step in self._averaged_steps:
            for total, weight in zip(self._sums, weights, strict=True):
                total += weight
            self._num_summed += 1
        if (point := self._points.get(self._step)) is not None:
            self.losses[point] = self._loss(weights)
        if (average := self._averages.get(self._step)) is not None:
            self.losses[average] = self._loss([total / self._num_summed for total in self._sums])
            self._num_summed = 0
            for total in self._sums:
                total.zero_()

    def _loss(self, weights: Sequence[Tensor]) -> float:
        for copy, weight in zip(self._copies, weights, strict=True):
            copy.copy_(weight)
        metrics = evaluate(
            self._model, self._source, Workers(), micro_batch_size=_ROWS_AT_ONCE, precision=self._precision
        )
        assert isinstance(metrics, dict), metrics
        return metrics[_LOSS]


def _in_order_of_groups(parameters: list[Tensor]) -> list[Tensor]:
    """As `build_optimizer` groups them: matrices, then vectors."""
    return [p for p in parameters if p.ndim >= 2] + [p for p in parameters if p.ndim < 2]
