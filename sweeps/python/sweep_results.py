"""The results of a sweep as Python objects, read from its folder."""

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from data_pipeline.schema.user_errors import InputFault
from sweeps.analysis.result_tables import ranked
from sweeps.analysis.yardsticks import yardsticks_of
from sweeps.python.loaded_model import LoadedModel
from sweeps.python.trials_table import trials_table
from sweeps.records.results_folder import ResultsError, read_summary
from sweeps.records.trial_records import LOSS_COLUMN, TrialRecord, TrialStore
from sweeps.search_space.distribution import format_setting
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import load_sweep_file
from sweeps.trained_models.trained_model import load_trained

_95 = 1.96
_FRAME_HEIGHT_PX = 800


@dataclass(frozen=True)
class BestTrial:
    """The winner of a sweep."""

    name: str
    settings: dict[str, Any]
    """Swept settings by dotted path."""
    loss: float
    """Holdout loss in nats per predicted token."""
    folder: Path
    """Its folder, with checkpoints and log."""


@dataclass(frozen=True)
class Prediction:
    """The expected holdout loss of settings, in nats per predicted token."""

    loss: float
    low: float
    """Lower end of the 95 % interval, with the noise of a seed."""
    high: float
    doubts: tuple[str, ...]
    """Reasons for which the model of the losses does not know; empty if it knows."""


@dataclass(frozen=True)
class Report:
    """report.html of a sweep; a notebook shows it in a frame."""

    path: Path

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(encoding="utf-8"))
        # The page runs no script, and the frame allows none.
        return f'<iframe sandbox srcdoc="{page}" style="width: 100%; height: {_FRAME_HEIGHT_PX}px; border: 0"></iframe>'


class SweepResults:
    """The sweep or training in a results folder, finished or not. Every property reads the files as they are now."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ResultsError: The folder holds no sweep.
        """
        if not (folder / "sweep.yaml").is_file():
            raise ResultsError(f"{folder} is no results folder of a sweep: it has no sweep.yaml")
        self.folder = folder.absolute()

    @property
    def config(self) -> SweepConfig:
        """Its configuration with every default."""
        return load_sweep_file(self.folder / "sweep.yaml")

    @property
    def summary(self) -> dict[str, Any]:
        """The contents of summary.json.

        Raises:
            ResultsError: The sweep wrote none yet.
        """
        return read_summary(self.folder)

    @property
    def status(self) -> str:
        """FINISHED, INCOMPLETE, INTERRUPTED or RUNNING."""
        return str(self.summary["status"])

    @property
    def trials(self) -> pd.DataFrame:
        """trials.csv: one row a trial, the best first."""
        # pandas alone would read an empty file as an error, and the text "None" of a setting as missing.
        return pd.read_csv(self.folder / "trials.csv", keep_default_na=False, na_values=[""])

    @property
    def best(self) -> BestTrial | None:
        """The winner; None if no trial completed, or none was trained in full."""
        row = self.summary["best"]
        if row is None:
            return None
        record = next(one for one in self._records() if one.name == row["trial"])
        folder = TrialStore(self.folder / "trials").folder_of(record)
        return BestTrial(record.name, dict(record.settings), float(row[LOSS_COLUMN]), folder)

    def predict(self, settings: Mapping[str, Any], tokens: int | None = None) -> Prediction:
        """The loss that settings would have, from the losses of all trials at all lengths.

        Args:
            settings: A value for each swept setting that may change a loss, by dotted path.
            tokens: Length of the training. None: that of the sweep's trials.

        Raises:
            InputFault: A setting is missing or unknown, nothing is swept, or no loss is known yet.
        """
        # SciPy takes a second to import.
        from sweeps.analysis.full_length import losses_of_trials
        from sweeps.early_stopping.rungs import rung_tokens
        from sweeps.horizon.loss_over_length import fit_loss_over_length
        from sweeps.horizon.setting_axes import axes_of

        sweep = self.config
        axes = axes_of(sweep.search)
        missing = [axis.path for axis in axes if axis.path not in settings]
        unknown = [path for path in settings if path not in sweep.search]
        if missing or unknown:
            raise InputFault(
                f"predict needs a value for each of {', '.join(axis.path for axis in axes) or 'no setting'}"
                + (f"; {', '.join(missing)} missing" if missing else "")
                + (f"; {', '.join(unknown)} not swept" if unknown else "")
            )
        full = sweep.budget.trial_tokens
        rungs = rung_tokens(sweep.early_stopping, full) or (full,)
        fitted = fit_loss_over_length(axes, losses_of_trials(sweep, self._records(), rungs)) if axes else None
        if fitted is None:
            raise InputFault(f"{self.folder.name} has no loss to predict from; it sweeps nothing, or no trial trained")
        length = tokens or full
        found = fitted.predict([dict(settings)], length)
        loss, half = float(found.mean[0]), _95 * math.hypot(float(found.sd[0]), fitted.noise_sd)
        return Prediction(loss, loss - half, loss + half, fitted.doubts_at(length))

    @property
    def report(self) -> Report:
        """Its report.

        Raises:
            ResultsError: The sweep wrote none yet.
        """
        path = self.folder / "report.html"
        if not path.is_file():
            raise ResultsError(f"{self.folder} has no report.html yet; the end of the sweep writes it")
        return Report(path)

    def model(self, *, allow_code: bool = False) -> LoadedModel:
        """The winner as a torch module with its tokenizer.

        Args:
            allow_code: Let the code of the model's own class run, if it has one.

        Raises:
            InputFault: No trial completed, or the model was removed.
        """
        return LoadedModel(load_trained(self.folder, allow_code=allow_code))

    def _records(self) -> list[TrialRecord]:
        return TrialStore(self.folder / "trials").load_all()

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        lines = "<br>".join(map(html.escape, self._lines()))
        return f"<p>{lines}</p>{trials_table(ranked(self._records()))}"

    def _lines(self) -> list[str]:
        summary, best = self.summary, self.best
        lines = [f"{self.folder.name}: {summary['status']}, {len(self._records())} trials"]
        if best is not None:
            lines.append(f"best {best.name}, holdout loss {best.loss:.4f} nats per token")
            lines += [f"  {path}: {format_setting(value)}" for path, value in best.settings.items()]
            yardsticks = yardsticks_of(summary)
            lines += [] if yardsticks is None else [yardsticks.in_words(best.loss)]
        return lines
