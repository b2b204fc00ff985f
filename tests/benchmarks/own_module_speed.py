"""A model of ours given as a user's class against itself: whole training steps, in turn.

    python tests/benchmarks/own_module_speed.py [--quick] [--threads N]

The class wraps our own decoder or encoder, so the maths and the kernels are the same, and the paths alone differ: the
simple path (`forward`, logits at all positions) or the fast one (`hidden_states` and `logits`). Steps alternate.
Figures are medians of processor time over the rounds, and the ratio, the median of each round's own, is the time of the
class over ours: below 1, the class is faster. fp32, one thread unless told otherwise. The last line is JSON.

--quick: small models, three rounds, below a minute.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.costs.lane_benchmark_worker import training_steps
from core.settings.run_config import RunConfig
from core.user_code.class_source import find_code
from core.user_code.permitted_code import permit

ROUNDS, QUICK_ROUNDS = 15, 3
CLASSES = """
from torch import nn

from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig


class Simple(nn.Module):
    def __init__(self, vocabulary_size, **form):
        super().__init__()
        self.model = build_model(ModelConfig.model_validate(form), vocabulary_size)

    def forward(self, input_ids, document_ids=None):
        return self.model(input_ids, document_ids)


class Halves(Simple):
    def hidden_states(self, input_ids, document_ids):
        return self.model.hidden_states(input_ids, document_ids)

    def logits(self, hidden):
        return self.model.logits(hidden)
"""


@dataclass(frozen=True)
class Case:
    """One of our models, and the path by which the class gives it."""

    name: str
    path: str
    form: dict[str, Any]
    vocabulary_size: int
    rows: int


def cases(*, quick: bool) -> Iterator[Case]:
    """The models: their head is a large part of a small one."""
    decoder = {"family": "decoder", "layers": 4, "width": 256, "heads": 4, "sequence_length": 256}
    encoder = {"family": "encoder", "form": "modern", "layers": 4, "width": 256, "heads": 4, "sequence_length": 256}
    if quick:
        small = {"layers": 2, "width": 64, "heads": 2, "sequence_length": 64}
        decoder, encoder = decoder | small, encoder | small
    vocabulary_size, rows = (1024, 4) if quick else (6400, 4)
    yield Case("causal_simple", "Simple", decoder, vocabulary_size, rows)
    yield Case("causal_halves", "Halves", decoder, vocabulary_size, rows)
    yield Case("masked_simple", "Simple", encoder, vocabulary_size, rows)
    yield Case("masked_halves", "Halves", encoder, vocabulary_size, rows)


def run_of(case: Case, model: dict[str, Any]) -> RunConfig:
    objective = "causal_lm" if case.form["family"] == "decoder" else "masked_lm"
    training = {"batch_size": case.rows, "micro_batch_size": case.rows, "precision": "fp32"}
    return RunConfig.model_validate({"model": model, "objective": objective, "training": training})


def seconds(steps: Iterator[int]) -> float:
    """Processor time of one step."""
    started_at = time.process_time()
    next(steps)
    return time.process_time() - started_at


def measure(case: Case, folder: Path, rounds: int) -> tuple[float, float, float]:
    """(ms of a step of the class, ms of ours, median ratio)."""
    code = find_code(f"classes.py:{case.path}", [folder])
    permit(code)
    given = {
        "class": code.class_path,
        "class_digest": code.digest,
        "arguments": case.form,
        "family": case.form["family"],
        "sequence_length": case.form["sequence_length"],
    }
    theirs, ours = (
        training_steps(
            run_of(case, model), vocabulary_size=case.vocabulary_size, rows=case.rows, device=torch.device("cpu")
        )
        for model in (given, case.form)
    )
    for steps in (theirs, ours):  # The first step makes what lasts.
        next(steps)
    times = []
    for number in range(rounds):
        # Whichever is first in a round finds other caches.
        first, second = (theirs, ours) if number % 2 else (ours, theirs)
        one, other = seconds(first), seconds(second)
        times.append((one, other) if number % 2 else (other, one))
    return (
        1000 * statistics.median(one for one, _ in times),
        1000 * statistics.median(other for _, other in times),
        statistics.median(one / other for one, other in times),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    ratios = {}
    print(f"{'case':<16}{'class, ms':>12}{'ours, ms':>12}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "classes.py").write_text(CLASSES)
        for case in cases(quick=asked.quick):
            theirs, ours, ratio = measure(case, Path(scratch), QUICK_ROUNDS if asked.quick else ROUNDS)
            ratios[case.name] = round(ratio, 3)
            print(f"{case.name:<16}{theirs:>12.1f}{ours:>12.1f}{ratio:>8.2f}", flush=True)
    print(json.dumps({"benchmark": "own_module_speed", "ratios": ratios, "quick": asked.quick}))


if __name__ == "__main__":
    main()
