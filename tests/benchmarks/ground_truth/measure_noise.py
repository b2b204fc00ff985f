"""Noise of the losses of a job: between seeds, and of a difference of two losses on one holdout.

    python tests/benchmarks/ground_truth/measure_noise.py [--quick] [--job causal_books]

`sweeps/analysis/noise_floor.py` has its prior and its PAIRED from here. Between seeds: the standard deviation of the
final loss, pooled over the settings of the table with several seeds. Paired: five settings near the best are trained,
and the standard deviation of the difference of two losses of a token is divided by that of independent tokens.
"""

import argparse
import csv
import json
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from make_truth_tables import write_text
from torch import Tensor
from truth_jobs import JOBS, Job, Setting, quick
from truth_training import ANNEALED

import core.step.evaluation
from core.distributed.workers import Workers
from core.training.training_run import run_training
from data_pipeline.tokens.token_blocks import PreparedCorpus

HERE = Path(__file__).parent


def seed_deviation(job: Job) -> float:
    """Pooled standard deviation of the final loss in nats; NaN without a table or repeats."""
    path = HERE / f"{job.name}.csv"
    losses: dict[tuple[str, ...], list[float]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row[ANNEALED[-1]]:
                setting = (row["learning_rate"], row["batch_rows"], row[job.third])
                losses[setting].append(float(row[ANNEALED[-1]]))
    repeated = [group for group in losses.values() if len(group) > 1]
    degrees = sum(len(group) - 1 for group in repeated)
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in repeated)
    return math.sqrt(squares / degrees) if degrees else math.nan


@contextmanager
def token_losses() -> Iterator[list[np.ndarray]]:
    """Losses of single tokens of the evaluations inside, in the order of the holdout."""
    found: list[np.ndarray] = []
    add = core.step.evaluation._add_predictions

    def listening(counts: object, model: torch.nn.Module, hidden: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            logits = model.logits(hidden).float()
            found.append((torch.logsumexp(logits, -1) - logits.gather(-1, labels[:, None])[:, 0]).numpy())
        add(counts, model, hidden, labels)

    core.step.evaluation._add_predictions = listening  # type: ignore[assignment]
    try:
        yield found
    finally:
        core.step.evaluation._add_predictions = add


def paired_ratios(job: Job, data: PreparedCorpus, work: Path) -> list[float]:
    """Deviation of the difference of two losses of a token over that of independent tokens, for each pair."""
    rates, batches, thirds = job.learning_rates, job.batches[-2:], job.thirds
    middle = len(rates) // 2
    near = [
        (Setting(rates[middle], batches[0], thirds[0]), 0),
        (Setting(rates[middle], batches[0], thirds[0]), 1),
        (Setting(rates[middle - 1], batches[0], thirds[0]), 0),
        (Setting(rates[min(middle + 1, len(rates) - 1)], batches[1], thirds[1]), 0),
        (Setting(rates[middle - 1], batches[1], thirds[1]), 0),
    ]
    losses = []
    for number, (setting, seed) in enumerate(near):
        folder = work / f"{job.name}-{number}"
        folder.mkdir()
        with token_losses() as heard:
            run_training(
                job.run_config(setting, seed=seed),
                data,
                workers=Workers(),
                folder=folder,
                report=lambda _: True,
                evaluate_at_tokens=(),
                checkpoint_every_s=None,
                report_every_s=math.inf,
            )
        losses.append(np.concatenate(heard))
    # A rehearsal comes before the first step; the last evaluation is the same tokens for all.
    common = int(0.9 * min(map(len, losses)))
    last = [one[-common:] for one in losses]
    return [float((a - b).std() / math.sqrt(a.var() + b.var())) for a, b in combinations(last, 2)]


def main() -> None:
    """Print a line for each job and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small copy of one job")
    parser.add_argument("--job", choices=JOBS, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    medians = {}
    with tempfile.TemporaryDirectory() as passing:
        work = Path(passing)
        jobs = [JOBS[name] for name in arguments.job or ["causal_books", "masked_packets"]]
        if arguments.quick:
            text = write_text(work / "text.jsonl")
            jobs = [quick(jobs[0], text)]
        for job in jobs:
            ratios = paired_ratios(job, job.prepared(work / "prepared"), work)
            medians[job.name] = round(statistics.median(ratios), 3)
            between = seed_deviation(job)
            print(
                f"{job.name}: {between:.4f} nats between seeds; paired error {medians[job.name]:.2f} of that of "
                f"independent tokens ({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} pairs)"
            )
    print(json.dumps({"benchmark": "measure_noise", "ratios": medians, "quick": arguments.quick}))


if __name__ == "__main__":
    main()
