"""The memory of one worker of a run: what may be used, what was, and what to do and say when it was not enough."""

from dataclasses import dataclass

from core.distributed.adaptive_micro_batch import Smaller
from core.distributed.workers import Workers
from core.memory.memory_limit import MemoryMeter
from core.memory.out_of_memory import OomFacts
from core.memory_prediction.peak_memory import WorkerSetup, largest_micro_batch, predict_memory
from core.settings.run_config import RunConfig
from data_pipeline.schema.settings import format_bytes


@dataclass(frozen=True)
class MemoryBudget:
    """The memory of a worker: what may be used, what was, and what was to be expected."""

    run: RunConfig
    vocabulary_size: int
    setup: WorkerSetup
    workers: Workers
    meter: MemoryMeter
    limit_bytes: int | None

    def largest_peak_bytes(self) -> int:
        """Over all workers; all of them ask."""
        return self.workers.largest(self.meter.peak_bytes)

    def bytes_in_use(self) -> int | None:
        """What this worker's tensors hold now; None where nobody counts any more."""
        return self.meter.current_bytes if self.meter.is_running else None

    def predicted_bytes(self, micro_batch_size: int) -> int:
        """Peak of one worker with this micro-batch, as predicted."""
        return predict_memory(
            self.run, self.vocabulary_size, micro_batch_size=micro_batch_size, setup=self.setup
        ).peak_bytes

    def smaller(self, tried: int, facts: OomFacts) -> Smaller:
        """What a micro-batch of `tried` >= 2 rows that ran out shrinks to: the largest that is predicted to fit.

        Into what is the question. The limit, if the prediction knew that `tried` is too much for it. Otherwise what
        was in use when memory ran out is all that is known to be there, and if even that and what was asked for is
        more than predicted, predictions are too low by that factor. A prediction that misled goes on with at least a
        quarter less, so that few tries are enough.
        """
        predicted = self.predicted_bytes(tried)
        if self.limit_bytes is not None and predicted > self.limit_bytes:
            fitting = self._largest(self.limit_bytes)
            if fitting < tried:
                return Smaller(max(1, fitting), is_neighbours=False)
        in_use = predicted if facts.bytes_in_use is None else facts.bytes_in_use
        demand = in_use + (facts.bytes_asked or 0)
        fitting = self._largest(in_use * min(predicted, demand) // max(demand, 1))
        size = max(1, min(fitting, tried - max(1, tried // 4)))
        wanted = predicted if facts.bytes_in_use is None else demand
        return Smaller(size, is_neighbours=self.limit_bytes is not None and wanted <= self.limit_bytes)

    def in_words(self, facts: OomFacts, micro_batch_size: int) -> str:
        """A shortage with its numbers."""
        in_use = self.meter.peak_bytes if facts.bytes_in_use is None else facts.bytes_in_use
        where = "" if facts.phase is None else f" in {facts.phase}"
        rank = "" if self.workers.count == 1 else f" on rank {facts.rank}"
        asked = "memory" if facts.bytes_asked is None else format_bytes(facts.bytes_asked)
        budget = (
            "the device has" if self.limit_bytes is None else f"the budget of {format_bytes(self.limit_bytes)} allows"
        )
        return (
            f"out of memory{where}{rank} with micro-batches of {micro_batch_size} rows: asked for {asked} more than "
            f"{budget}; {format_bytes(in_use)} were in use, "
            f"{format_bytes(self.predicted_bytes(micro_batch_size))} were predicted as needed"
        )

    def _largest(self, memory_bytes: int) -> int:
        return largest_micro_batch(self.run, self.vocabulary_size, memory_bytes=memory_bytes, setup=self.setup)
