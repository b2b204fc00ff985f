"""Memory and time of a LoRA step against full fine-tuning's, for system B's model, counted in real steps and predicted.

    python tests/benchmarks/lora_memory.py [--quick] [--micro-batch 16] [--threads N]

Every way of training takes the same steps through the same optimizer step: the model of MiniMind 1.4.0 (25,829,888
parameters, rows of 512), two micro-batches a step, in the format that the processor multiplies natively. Peaks are
counted by the meter that enforces memory budgets, from before the model exists to the end of a step; times are medians
of steps that nobody counts, taken in turn. Beside pretune's modules stand those of PEFT and torch's
parametrization (W + B A multiplied out), put into the same model. Needs peft. The last line is JSON.

--quick: two layers, micro-batches of 4, below a minute. Otherwise some ten minutes on two cores.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "core"))

from full_rows import FullRows

from core.distributed.workers import Workers
from core.layers.transformer_parts import Linear
from core.memory.malloc_tuning import keep_freed_memory
from core.memory.memory_limit import memory_limit
from core.memory_prediction.peak_memory import predict_memory
from core.models.language_model import LanguageModel
from core.models.lora import add_lora
from core.models.model_factory import build_model
from core.settings.precision import choose_precision
from core.settings.run_config import RunConfig
from core.settings.training_config import LoraConfig
from core.step.optimizer import build_optimizer
from core.step.optimizer_step import OptimizerStep, StepResult
from data_pipeline.tokens.batches import BatchSource
from data_pipeline.tokens.tokenizer import Vocabulary

CPU = torch.device("cpu")
VOCABULARY = Vocabulary(size=6400, pad_id=1, unk_id=0, bos_id=1, eos_id=2, mask_id=None, special_ids=(0, 1, 2))
RANK, ALPHA = 8, 16.0
FULL = "full fine-tuning"
LORA = "LoRA"
TARGETS = ["qkv", "out", "gate_and_up", "down"]
TARGET = 0.5
"""Memory of LoRA over that of full fine-tuning that we claim, at most."""


@dataclass(frozen=True)
class Way:
    """One way of training the same model."""

    name: str
    lora: LoraConfig | None = None
    """For the prediction; None where it is none of pretune's."""
    prepare: Callable[[LanguageModel], object] | None = None
    """Changes a model that has just been built, where that is not pretune's own doing."""


@dataclass
class Measured:
    """What came out for one way."""

    counted_bytes: int
    predicted_bytes: int | None
    trainable: int
    step: OptimizerStep
    seconds: list[float]


def with_peft(model: LanguageModel) -> None:
    """PEFT's modules around our matrices, those that hold several as one."""
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    peft.inject_adapter_in_model(settings, model)
    model.set_recomputed_feed_forward(True)


class ProductAdded(nn.Module):
    """torch's parametrization: the matrix that is used is the sum, multiplied out."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        self.down = nn.Parameter(torch.randn(RANK, columns) * columns**-0.5)
        self.up = nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addmm(weight, self.up, self.down, alpha=ALPHA / RANK)


def with_parametrization(model: LanguageModel) -> None:
    """torch.nn.utils.parametrize on the same matrices."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear) and name.rsplit(".", 1)[-1] in TARGETS:
            parametrize.register_parametrization(module, "weight", ProductAdded(module), unsafe=True)
    model.set_recomputed_feed_forward(True)


WAYS = (
    Way(FULL),
    Way(LORA, LoraConfig(rank=RANK, alpha=ALPHA)),
    Way("LoRA of q_proj and v_proj", LoraConfig(rank=RANK, alpha=ALPHA, targets="q_proj,v_proj")),
    Way("LoRA, nothing computed again", LoraConfig(rank=RANK, alpha=ALPHA, recompute_feed_forward=False)),
    Way("the same with PEFT's modules", prepare=with_peft),
    Way("the same with torch's parametrization", prepare=with_parametrization),
)


def main() -> None:
    """Measure all ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--micro-batch", type=int, default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory(True)
    micro_batch = arguments.micro_batch or (4 if arguments.quick else 16)
    run = a_run(layers=2 if arguments.quick else 8, micro_batch=micro_batch)
    found = {way.name: counted(way, run, micro_batch) for way in WAYS}
    for _ in range(2 if arguments.quick else 3):
        for one in found.values():
            one.seconds.append(timed_step(one.step))
    report(found, quick=arguments.quick, micro_batch=micro_batch, precision=found[FULL].step.precision.name)


def a_run(*, layers: int, micro_batch: int) -> RunConfig:
    """System B's, of two micro-batches a step."""
    shape = {"layers": layers, "width": 512, "heads": 32, "kv_heads": 8, "feed_forward_width": 1408}
    return RunConfig.model_validate(
        {
            "model": {"family": "decoder", "sequence_length": 512, **shape},
            "objective": "causal_lm",
            "training": {"batch_size": 2 * micro_batch, "learning_rate": 2e-4},
        }
    )


def counted(way: Way, run: RunConfig, micro_batch: int) -> Measured:
    """One step of two micro-batches under the meter: what the first leaves behind is there in the second."""
    run = run.with_overrides({"training.lora": way.lora and way.lora.model_dump()})
    predicted = None
    if way.prepare is None:
        predicted = predict_memory(run, VOCABULARY.size, micro_batch_size=micro_batch).peak_bytes
    gc.collect()
    with memory_limit(None, CPU) as meter:
        step = an_optimizer_step(way, run, micro_batch)
        timed_step(step)
        counted_bytes = meter.peak_bytes
    step._forget_gradients()
    return Measured(counted_bytes, predicted, step.model.num_trainable_parameters(), step, [])


def an_optimizer_step(way: Way, run: RunConfig, micro_batch: int) -> OptimizerStep:
    """The model, adapted in its way, with all that a step needs."""
    torch.manual_seed(0)
    precision = choose_precision("auto", CPU)
    model = build_model(run.model, VOCABULARY.size)
    if way.prepare is not None:
        way.prepare(model)
    elif run.training.lora is not None:
        add_lora(model, run.model, run.training.lora, frozen_dtype=precision.dtype)
    rows = FullRows(sequence_length=run.model.sequence_length, vocabulary_size=VOCABULARY.size)
    return OptimizerStep(
        model,
        build_optimizer(model, run.training, tokens_per_step=1.0),
        BatchSource(rows, VOCABULARY, masking_rate=None, seed=0),  # type: ignore[arg-type]
        Workers(),
        precision,
        batch_size=run.training.batch_size,
        micro_batch_size=micro_batch,
        tokens_per_step=1.0,
        clip=1.0,
    )


def timed_step(step: OptimizerStep) -> float:
    """Seconds of one step."""
    started_at = time.perf_counter()
    # Not step 0, in which the gradient noise may be measured, by a pass of its own.
    result = step.take(step=1, position=0, learning_rate=lambda _: 1e-5)
    assert isinstance(result, StepResult)
    seconds = time.perf_counter() - started_at
    step._forget_gradients()
    return seconds


def report(found: dict[str, Measured], *, quick: bool, micro_batch: int, precision: str) -> None:
    """The table, and the line for scripts."""
    full = found[FULL]
    full_s = statistics.median(full.seconds)
    print(f"micro-batches of {micro_batch} rows of 512 tokens, {precision}")
    print(f"{'':<40}{'trained':>12}{'counted, MiB':>14}{'of full':>9}{'predicted':>11}{'step, s':>9}{'of full':>9}")
    ratios = {}
    for name, one in found.items():
        memory, seconds = one.counted_bytes / full.counted_bytes, statistics.median(one.seconds)
        error = "" if one.predicted_bytes is None else f"{one.predicted_bytes / one.counted_bytes - 1:+.2%}"
        print(
            f"{name:<40}{one.trainable:>12,}{one.counted_bytes / 2**20:>14,.1f}{memory:>9.2f}{error:>11}"
            f"{seconds:>9.2f}{seconds / full_s:>9.2f}"
        )
        if name != FULL:
            key = name.replace(" ", "_").replace(",", "").replace("'", "")
            ratios |= {f"{key}_memory": round(memory, 4), f"{key}_time": round(seconds / full_s, 3)}
    errors = [abs(one.predicted_bytes / one.counted_bytes - 1) for one in found.values() if one.predicted_bytes]
    ratios["largest_prediction_error"] = round(max(errors), 6)
    print(json.dumps({"benchmark": "lora_memory", "ratios": ratios, "target": TARGET, "quick": quick}))


if __name__ == "__main__":
    main()
