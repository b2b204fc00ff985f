"""A real sweep that several modules look at, run once."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from command import run
from sweep_examples import TINY

TIGHT = "{training.learning_rate: 2e-3, training.batch_size: 256, training.micro_batch_size: 256}"
"""Settings that do not fit."""


@dataclass(frozen=True)
class TinySweep:
    """A finished sweep with one configuration that did not fit."""

    results: Path
    """Its results folder, to which others add theirs."""
    file: Path
    output: str
    """What it printed."""
    store: Path
    """A results folder that holds nothing but MLflow's file as this sweep left it."""


def tiny_sweep_in(folder: Path) -> TinySweep:
    """The sweep in this folder; run if it is not there yet."""
    results, store, printed = folder / "results", folder / "store", folder / "printed.txt"
    file = results / "tiny.yaml"
    if not printed.exists():
        # Where it failed in another process, it fails here with the same words.
        results.mkdir(parents=True, exist_ok=True)
        store.mkdir(exist_ok=True)
        space = TINY.replace("choice: [16, 32]", "choice: [16, 32, 256]").replace("[4, 8, 16]", "[4, 8, 256]")
        file.write_text(f"{space}start_with: [{TIGHT}]\nresources: {{memory: 16MiB}}\ntraining: {{on_oom: stop}}\n")
        code, output = run("sweep", file, "--results", results)
        assert code == 0, output
        shutil.copy(results / "mlflow.db", store)
        printed.write_text(output, encoding="utf-8")
    return TinySweep(results, file, printed.read_text(encoding="utf-8"), store)
