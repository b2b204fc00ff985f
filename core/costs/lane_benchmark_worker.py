"""Measure how fast one process trains the shape of a run on random rows, without corpus or results.

    python -m core.costs.lane_benchmark_worker

`core.costs.lane_benchmark` starts one such process per lane. Requests arrive on standard input and answers leave on
standard output, one JSON object per line.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
import torch

from core.distributed.workers import Workers
from core.models.lora import add_lora
from core.models.model_factory import build_model
from core.settings.precision import choose_precision
from core.settings.run_config import RunConfig
from core.step.optimizer import build_optimizer
from core.step.optimizer_step import OptimizerStep, StepResult
from core.user_code.class_source import code_of_json
from core.user_code.permitted_code import permit
from data_pipeline.tokens.batches import Batch, BatchSource, Shard


def training_steps(run: RunConfig, *, vocabulary_size: int, rows: int, device: torch.device) -> Iterator[int]:
    """Take optimizer steps endlessly; yields the number of tokens of each.

    Args:
        rows: Rows of a step, which has one micro-batch.

    Raises:
        MemoryError: A step ran out of memory.
    """
    precision = choose_precision(run.training.precision, device)
    model = build_model(run.model, vocabulary_size)
    if run.training.lora is not None:
        add_lora(model, run.model, run.training.lora, frozen_dtype=precision.dtype)
    model = model.to(device)
    model.set_activation_checkpointing(run.training.activation_checkpointing)
    step = OptimizerStep(
        model,
        build_optimizer(model, run.training, tokens_per_step=1.0, precision=precision),
        _RandomRows(run, vocabulary_size),
        Workers(device=device),
        precision,
        batch_size=rows,
        micro_batch_size=rows,
        tokens_per_step=1.0,
    )
    number = 0
    while True:
        if not isinstance(step.take(step=number, position=0, learning_rate=lambda _: 1e-6), StepResult):
            raise MemoryError(f"a micro-batch of {rows} rows does not fit in memory; use fewer rows")
        number += 1
        yield rows * run.model.sequence_length


class _RandomRows(BatchSource):
    """Full rows of random tokens, with as many predicted positions as in training."""

    def __init__(self, run: RunConfig, vocabulary_size: int) -> None:
        self._length, self._vocabulary_size = run.model.sequence_length, vocabulary_size
        rate = run.objective.masking_rate
        self._num_predicted = self._length - 1 if rate is None else max(1, round(rate * self._length))

    def shard(self, *, position: int, batch_size: int, rank: int, num_workers: int) -> Shard:  # noqa: ARG002
        rows = np.arange(batch_size)
        return Shard(rows, np.zeros_like(rows))

    def batch(self, shard: Shard, start: int, stop: int) -> Batch:  # noqa: ARG002
        num_rows = stop - start
        first_of_row = torch.arange(num_rows)[:, None] * self._length
        positions_P = (first_of_row + torch.arange(self._num_predicted)).flatten()
        return Batch(
            inputs_BT=torch.randint(self._vocabulary_size, (num_rows, self._length)),
            positions_P=positions_P,
            labels_P=torch.randint(self._vocabulary_size, positions_P.shape),
            document_ids_BT=None,
            num_tokens=num_rows * self._length,
            most_predicted=len(positions_P),
        )


def _serve(requests: TextIO, answers: TextIO) -> None:
    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    shape = json.loads(requests.readline())
    device = torch.device(shape["device"])
    if shape["memory_share"] is not None:
        torch.cuda.set_per_process_memory_fraction(shape["memory_share"], device)
    if shape["code"] is not None:
        permit(code_of_json(shape["code"]))
    steps = training_steps(
        RunConfig.model_validate(shape["run"]),
        vocabulary_size=shape["vocabulary_size"],
        rows=shape["rows"],
        device=device,
    )
    while request := requests.readline():
        asked = json.loads(request)
        torch.set_num_threads(asked["threads"])
        next(steps)  # The first step after a change of the number of threads starts them.
        answer(ready=True)
        requests.readline()  # All processes begin together.
        began, busy_from, tokens, num_steps = time.perf_counter(), time.thread_time(), 0, 0
        while num_steps < 2 or time.perf_counter() - began < asked["for_s"]:
            tokens += next(steps)
            num_steps += 1
        took_s = time.perf_counter() - began
        answer(
            tokens_per_s=tokens / took_s,
            threads=torch.get_num_threads(),
            busy=(time.thread_time() - busy_from) / took_s,
        )


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
