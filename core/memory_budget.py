"""The memory of one worker of a run: what may be used, what was, and how to say that it was not enough."""

from dataclasses import dataclass

from core.memory_limit import MemoryMeter
from core.memory_model import predict_memory
from core.micro_batch import has_document_ids
from core.out_of_memory import OomFacts
from core.run_config import RunConfig
from core.workers import Workers
from data_pipeline.settings import format_bytes
from data_pipeline.token_blocks import PreparedCorpus


@dataclass(frozen=True)
class MemoryBudget:
    """The memory of a worker: what may be used, what was, and what was to be expected."""

    run: RunConfig
    data: PreparedCorpus
    workers: Workers
    meter: MemoryMeter
    limit_bytes: int | None

    def largest_peak_bytes(self) -> int:
        """Over all workers; all of them ask."""
        return self.workers.largest(self.meter.peak_bytes)

    def in_words(self, facts: OomFacts, micro_batch_size: int) -> str:
        """A shortage with its numbers."""
        measured = self.meter.peak_bytes
        self.meter.stop()  # or it would count what the prediction only imagines
        predicted = predict_memory(
            self.run,
            self.data.vocabulary.size,
            micro_batch_size=micro_batch_size,
            num_workers=self.workers.count,
            device_type="cuda" if self.workers.device.type == "cuda" else "cpu",
            has_document_ids=has_document_ids(self.data),
        ).peak_bytes
        where = "" if facts.phase is None else f" in {facts.phase}"
        rank = "" if self.workers.count == 1 else f" on rank {facts.rank}"
        asked = "memory" if facts.bytes_asked is None else format_bytes(facts.bytes_asked)
        budget = (
            "the device has" if self.limit_bytes is None else f"the budget of {format_bytes(self.limit_bytes)} allows"
        )
        return (
            f"out of memory{where}{rank} with micro-batches of {micro_batch_size} rows: asked for {asked} more than "
            f"{budget}; "
            f"{format_bytes(measured)} were in use at most, {format_bytes(predicted)} were predicted as needed"
        )
