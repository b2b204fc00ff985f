"""The checkpoints of one run: rank 0 writes and reads them, and the others hear of what came of it."""

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


class RunCheckpoints:
    """A shortage of memory in here costs a checkpoint and not the run.

    Args:
        state: All of a checkpoint that is no tensor, as it is now; its `progress` has the `step`.
    """

    def __init__(
        self,
        folder: Path,
        model: LanguageModel,
        optimizer: torch.optim.AdamW,
        workers: Workers,
        state: Callable[[], dict[str, Any]],
    ) -> None:
        self._folder, self._model, self._optimizer, self._workers = folder, model, optimizer, workers
        self._state = state
        self._written_at = time.monotonic()
        self.oom_events: list[OutOfMemoryEvent] = []
        """Those that it survived; rank 0 alone knows of them."""

    def is_due(self, every_s: float | None) -> bool:
        """Whether the last one is so many seconds old; None: never."""
        return every_s is not None and time.monotonic() - self._written_at >= every_s

    def write(self) -> None:
        """A checkpoint; rank 0 alone."""
        self._attempt(self._write)

    def write_best(self, metrics: dict[str, float]) -> None:
        """The weights of the best evaluation so far; rank 0 alone."""
        step = self._state()["progress"]["step"]
        self._attempt(lambda: save_best(self._folder, self._model, metrics, step=step))

    def write_together(self) -> None:
        """A checkpoint, on all workers: the others hear if it fails."""
        self._attempt_together(self._write)

    def write_trunk_together(self) -> None:
        """The checkpoint from which a longer training can go on, on all workers."""

        def write() -> None:
            state = self._state()
            save_trunk(self._folder, self._model, self._optimizer, state, step=state["progress"]["step"])

        self._attempt_together(write)

    def note(self, facts: OomFacts) -> None:
        """There was no memory to write one."""
        state = self._state()
        rows = state["micro_batch_size"]
        self.oom_events.append(OutOfMemoryEvent(facts, state["progress"]["step"], rows, rows))

    def read_newest(self, run: RunConfig, data: PreparedCorpus, beginning: Beginning | None) -> dict[str, Any]:
        """Rank 0: puts a checkpoint's tensors in place and gives its state; empty without one.

        Args:
            beginning: Where to begin while there is none yet.

        Raises:
            ValueError: It is another run's.
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
        save_checkpoint(self._folder, self._model, self._optimizer, state, step=state["progress"]["step"])
        self._written_at = time.monotonic()

    def _attempt_together(self, write: Callable[[], object]) -> None:
        def on_first() -> None:
            if self._workers.is_first:
                self._attempt(write)

        facts = attempt_together(on_first, self._workers, phase="checkpoint")
        if isinstance(facts, OomFacts):
            self.note(facts)

    def _attempt(self, write: Callable[[], object]) -> None:
        """Write something to disk; note that there was no memory for it, and try once more when it is back."""
        alone = Workers(device=self._workers.device)  # only rank 0 writes
        for _ in range(2):
            facts = attempt_together(write, alone, phase="checkpoint")
            if not isinstance(facts, OomFacts):
                return
            self.note(facts)
