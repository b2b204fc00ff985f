"""pretune from Python: find the small language model that trains best inside the memory you have.

    import pretune

    sweep = pretune.sweep("sweep.yaml")  # The same sweep, folder and runs as `pretune sweep sweep.yaml`.
    sweep.trials                         # trials.csv as a pandas DataFrame
    sweep.best.settings
    model = sweep.model()                # a torch module with its tokenizer

This module holds names only.
"""
# ruff: noqa: E402 - the check below decides whether our packages can be imported at all.

from importlib.util import find_spec
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
for _name in ("data_pipeline", "core", "sweeps"):
    _spec = find_spec(_name)
    if _spec is None or _spec.origin is None or Path(_spec.origin).resolve().parents[1] != _ROOT:
        raise ImportError(
            f"{_spec.origin if _spec is not None else _name} would be imported in place of pretune's own package "
            f"{_name}; rename it, or run Python from another folder"
        )

from data_pipeline.schema.user_errors import InputFault
from sweeps.python.calls import estimate, load, plan, prepare, sweep, train
from sweeps.python.loaded_model import LoadedModel
from sweeps.python.shown_facts import ShownFacts
from sweeps.python.sweep_results import BestTrial, Prediction, Report, SweepResults

__all__ = [
    "BestTrial",
    "InputFault",
    "LoadedModel",
    "Prediction",
    "Report",
    "ShownFacts",
    "SweepResults",
    "estimate",
    "load",
    "plan",
    "prepare",
    "sweep",
    "train",
]
