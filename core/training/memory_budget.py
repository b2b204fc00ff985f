"""Memory of one worker of a run: its limit, its use, its prediction, and the response when it runs out."""

from dataclasses import dataclass

from core.distributed.adaptive_micro_batch import Smaller
from core.distributed.workers import Workers
from core.memory.memory_limit import MemoryMeter
from core.memory.out_of_memory import OomFacts
from core.memory_prediction.peak_memory import WorkerSetup, largest_micro_batch, predict_memory
from core.settings.run_config import RunConfig
from data_pipeline.schema.settings import format_bytes

_LARGEST_ROUNDING = 20 * 2**20
"""CUDA's allocator asks the device for more than was asked of it, by this at most."""


@dataclass(frozen=True)
class MemoryBudget:
    """Limit, use and prediction of a worker's memory."""

    run: RunConfig
    vocabulary_size: int
    setup: WorkerSetup
    workers: Workers
    meter: MemoryMeter
    limit_bytes: int | None

    def largest_peak_bytes(self) -> int:
        """Largest peak of all workers, in bytes. A collective operation: every worker calls it."""
        return self.workers.largest(self.meter.peak_bytes)

    def bytes_in_use(self) -> int | None:
        """Bytes that the limit is on, held by this worker now; None after the meter stopped."""
        return self.meter.current_bytes if self.meter.is_running else None

    def predicted_bytes(self, micro_batch_size: int) -> int:
        """Predicted peak of one worker with this micro-batch size."""
        return predict_memory(
            self.run, self.vocabulary_size, micro_batch_size=micro_batch_size, setup=self.setup
        ).peak_bytes

    def smaller(self, tried: int, facts: OomFacts) -> Smaller:
        """Smaller size after a micro-batch of `tried` >= 2 rows ran out of memory: the largest predicted to fit.

        The available memory is the limit, if the prediction for `tried` exceeds it. Otherwise only the bytes in use at
        the failure are known to be available; if those plus the failed request exceed the prediction, predictions are
        too low by that factor. After a wrong prediction the size shrinks by at least a quarter, so that few tries are
        enough.
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
        wanted += _LARGEST_ROUNDING if self.setup.device_type == "cuda" else 0
        return Smaller(size, is_neighbours=self.limit_bytes is not None and wanted <= self.limit_bytes)

    def in_words(self, facts: OomFacts, micro_batch_size: int) -> str:
        """Message about an out-of-memory error: phase, rank, bytes requested, memory limit, bytes in use, predicted."""
        in_use = self.meter.peak_bytes if facts.bytes_in_use is None else facts.bytes_in_use
        where = "" if facts.phase is None else f" in {facts.phase}"
        rank = "" if self.workers.count == 1 else f" on rank {facts.rank}"
        asked = "memory" if facts.bytes_asked is None else format_bytes(facts.bytes_asked)
        limit = (
            "the device has"
            if self.limit_bytes is None
            else f"the memory limit of {format_bytes(self.limit_bytes)} allows"
        )
        return (
            f"out of memory{where}{rank} with micro-batches of {micro_batch_size} rows: asked for {asked} more than "
            f"{limit}; {format_bytes(in_use)} were in use, "
            f"{format_bytes(self.predicted_bytes(micro_batch_size))} were predicted as needed"
        )

    def _largest(self, memory_bytes: int) -> int:
        return largest_micro_batch(self.run, self.vocabulary_size, memory_bytes=memory_bytes, setup=self.setup)
