"""Run the chains of sweeps/configs at laptop size, and set what came out beside what the systems' authors logged.

    python tests/run_systems.py [--only A C] [--results FOLDER]

`make systems` runs all of them, in 34 minutes on two processor cores with other work beside (A 373 s, B 381, C 396,
D 199, E 711). Chains whose corpus is not there are passed over. What is compared: parameter
counts of the full size, the arithmetic of steps, the loss of a model that has learnt nothing (near ln of the
vocabulary), that training lowers it, what the model then makes of a text, and what came of the steps after that. Ends
with exit code 1 if something of that does not hold.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from core.distributed.workers import Workers
from core.memory.out_of_memory import OomFacts
from core.model_files.initial_weights import fresh_model
from core.models.model_factory import build_model
from core.settings.precision import choose_precision
from core.step.evaluation import evaluate, holdout_source
from data_pipeline.tokens.token_blocks import open_prepared
from sweeps.settings.stage_config import steps_of
from sweeps.settings.sweep_file import load_sweep_file
from sweeps.trained_models.finished_sweeps import finished_sweep

CONFIGS = Path("sweeps/configs")
SYSTEMS = {"A": "traffic", "B": "minimind", "C": "chinese", "D": "kant", "E": "epoch"}
STEPS: dict[str, tuple[tuple[str, ...], ...]] = {
    # Every chain begins with the sweep and the training of its name; what follows them, a command a line.
    "A": (("finetune", "traffic-classify.yaml"),),
    "B": (("sweep", "minimind-lora.yaml"),),
    "C": (("sweep", "chinese-sft.yaml"), ("train", "chinese-sft-train.yaml")),
}
FULL_SIZE = {"B": 25_829_888, "C": 25_829_888, "D": 83_504_416, "E": 25_829_888}
"""Parameters as their authors, or transformers for the same shape, count them."""
STEPS_OF_A = (848, 84, 763, 16, 4_523)
"""Steps, warm-up, annealing, accumulation, micro-batches: 18,092 samples, batch 64 in micro-batches of 4, 3 epochs."""


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    came_out: str
    logged: str
    holds: bool


def main() -> None:
    """Run the chains that are asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=sorted(SYSTEMS), default=sorted(SYSTEMS))
    parser.add_argument("--results", type=Path, default=Path("results/systems"))
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("system", "what", "came out", "SYSTEMS.md", ""):
        table.add_column(name, overflow="fold")
    all_hold = True
    for letter in arguments.only:
        started_at = time.monotonic()
        rows = list(run_chain(letter, arguments.results, console))
        rows.append(Row("took", f"{time.monotonic() - started_at:.0f} s", "", holds=True))
        for row in rows:
            table.add_row(letter, row.what, row.came_out, row.logged, "" if row.holds else "DIFFERS")
        all_hold &= all(row.holds for row in rows)
    console.print(table)
    sys.exit(0 if all_hold else 1)


def run_chain(letter: str, results: Path, console: Console) -> Iterator[Row]:
    """Sweep, train, and compare."""
    name = SYSTEMS[letter]
    yield from _of_full_size(letter, name)
    if not corpus_is_there(CONFIGS / f"{name}.yaml"):
        yield Row("chain", "passed over: its corpus is not here", "", holds=True)
        return
    for step in (("sweep", f"{name}.yaml"), ("train", f"{name}-train.yaml")):
        run_step(step, results, console)
    yield from _of_results(letter, newest(results, f"{name}-train"), newest(results, name))
    for step in STEPS.get(letter, ()):
        out = run_step(step, results, console)
        yield from _of_classes(json.loads(out)) if step[0] == "finetune" else _of_answers(newest(results, _stem(step)))


def run_step(step: Sequence[str], results: Path, console: Console) -> str:
    """Carry out one command of a chain; gives what a fine-tuning prints for scripts.

    Raises:
        subprocess.CalledProcessError: It failed; its own words stand above.
    """
    words = [str(CONFIGS / word) if word.endswith(".yaml") else word for word in step]
    console.print(f"$ pretune {' '.join(words)}", style="bold", highlight=False, soft_wrap=True)
    prints_json = step[0] == "finetune"
    started_at = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "sweeps", *words, "--results", str(results), *(["--json"] if prints_json else [])],
        check=True,
        text=True,
        stdout=subprocess.PIPE if prints_json else None,
    )
    console.print(f"took {time.monotonic() - started_at:.0f} s", style="bold", highlight=False)
    return done.stdout or ""


def _stem(step: Sequence[str]) -> str:
    return Path(step[1]).stem


def corpus_is_there(file: Path) -> bool:
    """Whether a file's corpus lies where it says."""
    path = load_sweep_file(file).corpus.path
    return path is not None and any(any(Path().glob(one)) for one in ([path] if isinstance(path, str) else path))


def newest(results: Path, name: str) -> Path:
    """The results folder of this name that was written last."""
    named = [
        path.parent
        for path in results.glob(f"{name}-*/summary.json")
        if json.loads(path.read_text(encoding="utf-8"))["name"] == name
    ]
    return max(named, key=lambda folder: (folder / "summary.json").stat().st_mtime)


def _of_full_size(letter: str, name: str) -> Iterator[Row]:
    sweep = load_sweep_file(CONFIGS / f"{name}-train.yaml", ["size=full"])
    with torch.device("meta"):
        found = build_model(sweep.run_config().model, sweep.tokenizer.vocabulary).num_parameters()
    logged = FULL_SIZE.get(letter)
    yield Row("parameters at full size", f"{found:,}", f"{logged:,}" if logged else "", logged in (None, found))
    if letter == "A":
        stage = load_sweep_file(
            CONFIGS / f"{name}-train.yaml",
            ["size=full", "stages=[{sequence_length: 256, batch_size: 64, micro_batch_size: 4, epochs: 3}]"],
        ).stage_runs()[0]
        steps = steps_of(stage, num_rows=18_092, num_tokens=18_092 * 256)
        came_out = (
            *(steps.num_steps, steps.warmup_steps, steps.annealing_steps),
            *(steps.accumulation, steps.micro_batches_per_worker),
        )
        what = "steps, warm-up, annealing, accumulation, batches"
        yield Row(what, _listed(came_out), _listed(STEPS_OF_A), came_out == STEPS_OF_A)


def _of_results(letter: str, trained: Path, swept: Path) -> Iterator[Row]:
    summary: dict[str, Any] = json.loads((trained / "summary.json").read_text(encoding="utf-8"))
    vocabulary = summary["data"]["vocabulary"]
    loss = untrained_loss(trained)
    logged = {"A": "11.0998", "B": "8.94 (step 1)"}.get(letter, "")
    near = f"ln {vocabulary:,} = {math.log(vocabulary):.2f}" + (f"; logged {logged} at full size" if logged else "")
    yield Row("loss before training", f"{loss:.4f}", near, abs(loss - math.log(vocabulary)) < 0.5)
    best: dict[str, Any] = summary["best"] or {}
    final = best.get("holdout_loss_nats_per_token", math.inf)
    ends = {"A": "0.9694", "B": "2.43", "E": "2.287"}.get(letter)
    yield Row("loss after training", f"{final:.4f}", f"{ends} at full size" if ends else "", final < loss - 1)
    of_sweep = json.loads((swept / "summary.json").read_text(encoding="utf-8"))["best"]
    yield Row("loss of the sweep's winner", f"{of_sweep['holdout_loss_nats_per_token']:.4f}", "", holds=True)
    yield Row("tokens, tokens/s", f"{best['tokens']:,}, {best['tokens_per_s']:,.0f}", "", holds=True)
    sample = summary["samples"][0]
    is_causal = "⟦" not in sample["text"]
    what = "goes on with a text" if is_causal else "fills a text"
    yield Row(what, f"{sample['text'][-60:]} | {sample['made'][:80]}", "", bool(sample["made"].strip()))


def _of_classes(figures: dict[str, Any]) -> Iterator[Row]:
    """What telling classes apart came to, beside what costs nothing."""
    majority, scratch = figures["majority_class"], figures["from_scratch"]
    low, high = figures["accuracy_95_percent"]
    beside = f"commonest class {majority['accuracy']:.4f}, from scratch {scratch['accuracy']:.4f}"
    yield Row(
        f"accuracy over {figures['num_classes']} classes",
        f"{figures['accuracy']:.4f} ({low:.3f} to {high:.3f})",
        beside,
        figures["accuracy"] > majority["accuracy"],
    )
    yield Row(
        "macro F1 over classes", f"{figures['macro_f1']:.4f}", f"from scratch {scratch['macro_f1']:.4f}", holds=True
    )


def _of_answers(folder: Path) -> Iterator[Row]:
    """A fine-tuning on conversations."""
    best: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["best"] or {}
    loss = best.get("holdout_loss_nats_per_token", math.inf)
    yield Row(f"loss of answers, {folder.name.rpartition('-')[0]}", f"{loss:.4f}", "", math.isfinite(loss))


def untrained_loss(folder: Path) -> float:
    """Holdout loss of the model of a training before its first step, in nats per predicted token."""
    earlier = finished_sweep(folder)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    data = open_prepared(Path(summary["data"]["folder"]))
    run, workers = earlier.sweep.run_config(), Workers()
    metrics = evaluate(
        fresh_model(run, data, workers.device),
        holdout_source(data, is_causal=run.model.is_causal),
        workers,
        micro_batch_size=16,
        precision=choose_precision("auto", workers.device),
    )
    assert not isinstance(metrics, OomFacts), metrics
    return metrics["holdout/loss_nats_per_token"]


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(f"{one:,}" for one in numbers)


if __name__ == "__main__":
    main()
