"""Predicted memory of one configuration, part by part."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from core.memory.host_memory import CUDA_CONTEXT_BYTES
from core.memory_prediction.automatic_micro_batch import automatic_micro_batch
from core.memory_prediction.peak_memory import how_to_fit, largest_micro_batch, predict_memory, predicted_precision
from data_pipeline.schema.settings import format_bytes, parse_bytes
from data_pipeline.schema.user_errors import InputFault
from sweeps.planning.first_checks import check_device
from sweeps.planning.resolved_sweep import ExpectedSweep
from sweeps.planning.sweep_plan import FIRST_MARGIN_ON_CUDA, SweepPlan, plan_sweep, predictions_kept
from sweeps.settings.sweep_config import SweepConfig

GPU_GIBIBYTES = {
    "RTX 3060": 12,
    "RTX 3090": 24,
    "RTX 4070": 12,
    "RTX 4080": 16,
    "RTX 4090": 24,
    "RTX 5090": 32,
    "T4": 16,
    "V100": 32,
    "V100 16GB": 16,
    "A10": 24,
    "A100": 80,
    "A100 40GB": 40,
    "L4": 24,
    "L40S": 48,
    "H100": 80,
    "H200": 141,
}
"""Nominal memory from the manufacturers' data sheets."""
_WITHOUT_BF16 = ("T4", "V100", "V100 16GB")


def memory_of(plan: SweepPlan, *, memory: str | None, device: str | None) -> tuple[SweepPlan, str]:
    """The plan with the memory given on the command line, and a name for that memory.

    Raises:
        InputFault: Both options are given, or the device is unknown.
    """
    if memory is not None and device is not None:
        raise InputFault("give --memory or --device, not both")
    if memory is not None:
        try:
            num_bytes = parse_bytes(memory)
        except ValueError as error:
            raise InputFault(f"--memory {memory}: {error}") from error
        return replace(plan, memory_bytes=num_bytes), memory
    if device is not None:
        known = {name.lower(): name for name in GPU_GIBIBYTES}
        name = known.get(device.lower().removeprefix("nvidia ").removeprefix("geforce "))
        if name is None:
            raise InputFault(
                f"--device {device!r}: is unknown; choose one of {', '.join(GPU_GIBIBYTES)}, or give --memory 24GiB"
            )
        on_gpu = replace(plan.lanes, use_gpu=True)
        memory_bytes = GPU_GIBIBYTES[name] * 2**30 - CUDA_CONTEXT_BYTES
        return replace(plan, lanes=on_gpu, memory_bytes=memory_bytes, computes_bf16=name not in _WITHOUT_BF16), name
    return plan, "this machine's share of one worker"


@dataclass(frozen=True)
class Estimate:
    """The memory of one configuration on one worker."""

    memory_of: str
    """Name of the memory that the limit belongs to."""
    limit_bytes: int
    micro_batch_size: int
    is_automatic: bool
    """True: `auto` chose the micro-batch size."""
    peak_bytes: int
    parts_bytes: dict[str, int]
    """Largest first; they add up to the peak."""
    largest_micro_batch: int
    largest_with_checkpointing: int | None
    """None for a class of the user, which decides itself."""
    advice: tuple[str, ...]
    """The device and precision of the prediction, and changes that make the run fit."""


def expected_estimate(
    asked: SweepConfig, results_folder: Path, *, memory: str | None, device: str | None, say: Callable[[str], None]
) -> Estimate:
    """The memory of a sweep's own configuration, by part.

    Args:
        memory, device: As `memory_of`.
        say: Called with a line about predictions that cannot be kept.

    Raises:
        InputFault: The file, the device or the memory is faulty.
    """
    # Memory does not depend on the length of a training: no tokens are counted.
    expected = ExpectedSweep(asked, results_folder)
    with predictions_kept(results_folder, say=say):
        planned, name = memory_of(
            plan_sweep(expected.begun, vocabulary_size=expected.vocabulary_size), memory=memory, device=device
        )
        check_device(planned.sweep, num_gpus=int(planned.lanes.use_gpu))
        return estimate_of(planned, name)


def estimate_of(plan: SweepPlan, name: str) -> Estimate:
    """Memory by part, the largest micro-batch with and without activation checkpointing, and changes that help."""
    run = plan.sweep.run_config()
    setup = plan.worker_setup
    largest = {
        checkpointing: largest_micro_batch(
            run.with_overrides({"training.activation_checkpointing": checkpointing}),
            plan.vocabulary_size,
            memory_bytes=plan.memory_bytes,
            setup=setup,
        )
        # A user's class decides itself which activations it keeps.
        for checkpointing in ((False, True) if run.model.class_ is None else (False,))
    }
    with_checkpointing = f", with activation checkpointing {largest[True]}" if True in largest else ""
    asked = run.training.micro_batch_size
    micro_batch = asked
    if micro_batch == "auto":
        micro_batch = automatic_micro_batch(
            batch_size=run.training.largest_batch_size,
            num_workers=setup.num_workers,
            sequence_length=run.model.sequence_length,
            largest_feasible=largest[run.training.activation_checkpointing],
        )
    prediction = predict_memory(run, plan.vocabulary_size, micro_batch_size=micro_batch, setup=setup)
    rows, workers = setup.rows_of(run), setup.num_workers
    rows_in_words = f"of {rows} row{'s' if rows > 1 else ''} a step" + (
        f" on each of {workers} workers" if workers > 1 else ""
    )
    exact = run.with_overrides({"training.micro_batch_size": micro_batch})
    return Estimate(
        memory_of=name,
        limit_bytes=plan.memory_bytes,
        micro_batch_size=micro_batch,
        is_automatic=asked == "auto",
        peak_bytes=prediction.peak_bytes,
        parts_bytes=dict(sorted(prediction.parts.items(), key=lambda item: -item[1])),
        largest_micro_batch=largest[False],
        largest_with_checkpointing=largest.get(True),
        advice=(
            _made_for(plan, name),
            f"largest micro-batch: {largest[False]}{with_checkpointing} ({rows_in_words})",
            how_to_fit(exact, plan.vocabulary_size, memory_bytes=plan.memory_bytes, setup=setup),
        ),
    )


def print_estimate(found: Estimate, console: Console) -> None:
    """Print the parts as a table, then the advice."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"micro-batch {found.micro_batch_size}" + (" (auto)" if found.is_automatic else ""))
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    for part, num_bytes in found.parts_bytes.items():
        table.add_row(part, format_bytes(num_bytes), f"{num_bytes / found.peak_bytes:.0%}")
    peak = f"{found.peak_bytes / found.limit_bytes:.0%} of {found.memory_of}"
    table.add_row("peak", format_bytes(found.peak_bytes), peak)
    console.print(table)
    for words in found.advice:
        console.print(words, highlight=False, soft_wrap=True)


def _made_for(plan: SweepPlan, name: str) -> str:
    """The device and precision of the prediction, and its unmeasured parts."""
    precision = predicted_precision(plan.sweep.run_config(), plan.worker_setup)
    if plan.worker_setup.device_type == "cpu":
        return f"predicted for training on processors in {precision}; --device predicts for a GPU"
    words = f"predicted for a GPU in {precision}, not measured on one"
    if name in GPU_GIBIBYTES:
        words += (
            f": of {GPU_GIBIBYTES[name]} GiB CUDA's context and libraries are taken to need "
            f"{format_bytes(CUDA_CONTEXT_BYTES)}"
        )
    return f"{words}; a sweep keeps another {FIRST_MARGIN_ON_CUDA:.0%} free until a trial has shown that it need not"
