"""Checkpoints of one run: rank 0 writes and reads them, and all workers learn the result."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core.distributed.collective_attempt import attempt_together
from core.distributed.workers import Workers
from core.memory.memory_reports import OutOfMemoryEvent
from core.memory.out_of_memory import OomFacts
from core.model_files.checkpoint import newest_checkpoint, restore, save_best, save_checkpoint, save_trunk
from core.models.language_model import LanguageModel
from core.settings.run_config import RunConfig
from core.training.run_checks import Beginning, check_same_run, check_trunk
from data_pipeline.tokens.token_blocks import PreparedCorpus

_MOST_OF_THE_TIME = 0.02
"""Largest share of the time that writing checkpoints may take: one of a 1 B model has 12 GB."""


class RunCheckpoints:
    """Writes and reads the checkpoints of a run. Running out of memory here costs a checkpoint, not the run.

    Args:
        state: Returns the current state of a checkpoint apart from tensors; its `progress` holds the `step`.
    """

    def __init__(
        self,
        folder: Path,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        workers: Workers,
        state: Callable[[], dict[str, Any]],
    ) -> None:
        self._folder, self._model, self._optimizer, self._workers = folder, model, optimizer, workers
        self._state = state
        self._written_at = time.monotonic()
        self._cost_s = 0.0
        """Seconds that the last checkpoint took."""
        self.oom_events: list[OutOfMemoryEvent] = []
        """Out-of-memory events that the run survived; only rank 0 records them."""

    def is_due(self, every_s: float | None) -> bool:
        """True if the last checkpoint is at least `every_s` seconds old, and old enough that writing takes at most
        2 % of the time; never for None."""
        if every_s is None:
            return False
        return time.monotonic() - self._written_at >= max(every_s, self._cost_s / _MOST_OF_THE_TIME)

    def write(self) -> None:
        """Write a checkpoint; only rank 0 calls it."""
        self._attempt(self._write)

    def write_best(self, metrics: dict[str, float]) -> None:
        """Write the weights of the best evaluation so far; only rank 0 calls it."""
        step = self._state()["progress"]["step"]
        self._attempt(lambda: save_best(self._folder, self._model, metrics, step=step))

    def write_together(self) -> None:
        """Write a checkpoint; all workers call it, and all learn of a failure."""
        self._attempt_together(self._write)

    def write_trunk_together(self) -> None:
        """Write the trunk checkpoint, from which a longer training can resume; all workers call it."""

        def write() -> None:
            state = self._state()
            save_trunk(self._folder, self._model, self._optimizer, state, step=state["progress"]["step"])

        self._attempt_together(write)

    def note(self, facts: OomFacts) -> None:
        """Record that writing a checkpoint ran out of memory."""
        state = self._state()
        rows = state["micro_batch_size"]
        self.oom_events.append(OutOfMemoryEvent(facts, state["progress"]["step"], rows, rows))

    def read_newest(self, run: RunConfig, data: PreparedCorpus, beginning: Beginning | None) -> dict[str, Any]:
        """Restore the newest checkpoint on rank 0 and return its state; empty on other ranks or without a checkpoint.

        Args:
            beginning: Checkpoint to begin with if the folder holds none.

        Raises:
            ValueError: The checkpoint belongs to another run.
        """
        if not self._workers.is_first:
            return {}
        checkpoint = newest_checkpoint(self._folder)
        if checkpoint is not None:
            check_same_run(checkpoint, run, data)
            return restore(checkpoint, self._model, self._optimizer)
        if beginning is None:
            return {}
        if beginning.is_same_run:
            check_trunk(beginning.checkpoint, run, data)
        saved = restore(beginning.checkpoint, self._model, self._optimizer)
        return saved if beginning.is_same_run else {"loss_scale": saved["loss_scale"]}

    def _write(self) -> None:
        state = self._state()
        began_at = time.monotonic()
        save_checkpoint(self._folder, self._model, self._optimizer, state, step=state["progress"]["step"])
        self._written_at = time.monotonic()
        self._cost_s = self._written_at - began_at

    def _attempt_together(self, write: Callable[[], object]) -> None:
        def on_first() -> None:
            if self._workers.is_first:
                self._attempt(write)

        facts = attempt_together(on_first, self._workers, phase="checkpoint")
        if isinstance(facts, OomFacts):
            self.note(facts)

    def _attempt(self, write: Callable[[], object]) -> None:
        """Call `write`; if it runs out of memory, record that and try once more."""
        alone = Workers(device=self._workers.device)  # Only rank 0 writes.
        for _ in range(2):
            facts = attempt_together(write, alone, phase="checkpoint")
            if not isinstance(facts, OomFacts):
                return
            self.note(facts)
