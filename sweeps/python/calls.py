"""The calls of `pretune`: what the commands do, with objects in place of files to read.

Inputs are checked as by the commands: a mistake of the user raises `InputFault` with one paragraph.
"""

import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from data_pipeline.schema.terminal_text import echo
from data_pipeline.schema.user_errors import InputFault
from sweeps.commands.command_frame import results_location, terminal
from sweeps.commands.terminal import Terminal
from sweeps.python.given_sweep import GivenSweep, Overrides, as_texts, given_sweep
from sweeps.python.loaded_model import LoadedModel
from sweeps.python.shown_facts import ShownFacts
from sweeps.python.sweep_results import SweepResults
from sweeps.python.trials_table import LiveTable, is_notebook
from sweeps.records.retry_request import NO_RETRY, RetryRequest
from sweeps.settings.sweep_config import SweepConfig

_WIDTH = 160
Location = str | PathLike[str] | None
"""A results folder or URI. None: that of the commands, $PRETUNE_RESULTS or ./results."""


def sweep(
    config: GivenSweep,
    *,
    search: Mapping[str, Any] | None = None,
    overrides: Overrides = (),
    results: Location = None,
    retry: Sequence[str] = (),
    allow_code: bool = False,
) -> SweepResults:
    """Run a sweep to its end, or resume it. A file gives the same sweep as `pretune sweep FILE`.

    Ray is joined if it runs in this process, and left running; otherwise it is started and shut down.

    Args:
        config: A sweep file's path, a dictionary with the contents of one, or a configuration.
        search: Swept settings by dotted path: as in a file, or distributions of Ray Tune or Optuna.
        overrides: Settings by dotted path, as `--set` has them.
        results: Results folder or URI.
        retry: Ended trials to train again: `failed`, `given-up`, or names such as `trial-0007`.
        allow_code: Let the code of `model.class` run, as `--allow-code` does.

    Raises:
        InputFault: A mistake in the sweep, or a fault of the machine, which the same call resumes after.
        KeyboardInterrupt: The sweep was interrupted; the same call resumes it.
    """
    asked = given_sweep(config, search=search, overrides=overrides, allow_code=allow_code)
    return _run(asked, results, RetryRequest(tuple(retry)))


def train(
    source: str | PathLike[str] | SweepResults,
    *,
    chosen: str | None = None,
    tokens: int | str | None = None,
    keep_settings: bool = False,
    overrides: Overrides = (),
    results: Location = None,
    allow_code: bool = False,
) -> SweepResults:
    """Train one configuration in full, or resume that. See `pretune train`.

    Args:
        source: A sweep, its results folder, or a sweep file.
        chosen: `best`, a trial's name, or `file`. None: the best trial, if there is one.
        tokens: Total tokens, as a number, `100M`, or `10x` the sweep's.
        keep_settings: Keep learning rate and batch size as found, whatever the length.

    Raises:
        InputFault, KeyboardInterrupt: As `sweep`.
    """
    from sweeps.planning.full_training import asked_length, plan_training

    path = source.folder if isinstance(source, SweepResults) else Path(source)
    if results is None and path.is_dir():
        results = path.absolute().parent
    folder, _ = _location(results)
    planned = plan_training(
        path,
        as_texts(overrides),
        chosen=chosen,
        length=None if tokens is None else asked_length(str(tokens)),
        keep_settings=keep_settings,
        results_folder=folder,
        console=_console(),
        allow_code=allow_code,
    )
    return _run(planned, results)


def plan(
    config: GivenSweep,
    *,
    search: Mapping[str, Any] | None = None,
    overrides: Overrides = (),
    results: Location = None,
    measure: bool = True,
    allow_code: bool = False,
) -> ShownFacts:
    """Trials, time, price and memory of a sweep, with warnings; trains nothing.

    Args:
        measure: Measure the speed of this machine for some seconds.
        allow_code: As `sweep`.

    Raises:
        InputFault: A mistake in the sweep.
    """
    asked = given_sweep(config, search=search, overrides=overrides, allow_code=allow_code)
    from sweeps.planning.plan_facts import gather_facts
    from sweeps.planning.plan_output import plan_as_json, print_plan
    from sweeps.planning.sweep_plan import predictions_kept

    folder, _ = _location(results)
    with predictions_kept(folder, say=_say):
        facts = gather_facts(asked, folder, may_measure=measure)
        return ShownFacts.of(plan_as_json(facts), lambda console: print_plan(facts, console))


def estimate(
    config: GivenSweep,
    *,
    overrides: Overrides = (),
    memory: str | None = None,
    device: str | None = None,
    results: Location = None,
    allow_code: bool = False,
) -> ShownFacts:
    """The memory of one configuration by part, in bytes.

    Args:
        memory: Memory of one worker, as `24GiB`. None: that of this machine.
        device: A GPU by name, as `RTX 4090`.

    Raises:
        InputFault: A mistake in the configuration.
    """
    from dataclasses import asdict

    from sweeps.planning.memory_estimate import expected_estimate, print_estimate

    folder, _ = _location(results)
    asked = given_sweep(config, overrides=overrides, allow_code=allow_code)
    found = expected_estimate(asked, folder, memory=memory, device=device, say=_say)
    return ShownFacts.of(asdict(found), lambda console: print_estimate(found, console))


def prepare(config: GivenSweep, *, overrides: Overrides = (), results: Location = None) -> ShownFacts:
    """Read, tokenize and pack the corpus of a sweep; a prepared one is reused.

    Raises:
        InputFault: The corpus cannot be read, or holds nothing to train on.
    """
    asked = given_sweep(config, overrides=overrides)
    from sweeps.lanes.library_logs import log_libraries_in
    from sweeps.planning.preparation import data_figures, print_preparation
    from sweeps.planning.resolved_sweep import PreparedSweep

    folder, _ = _location(results)
    log_libraries_in(folder)
    data = PreparedSweep(asked, folder, _console()).data
    return ShownFacts.of(data_figures(data), lambda console: print_preparation(data, console))


def load(
    path: str | PathLike[str], *, results: Location = None, allow_code: bool = False
) -> SweepResults | LoadedModel:
    """A sweep from its results folder, or a model.

    Args:
        path: The results folder of a sweep or training; or a model: its `best/`, a trial's folder, a folder of Hugging
            Face transformers, `runs:/ID` or `models:/NAME` of MLflow.
        results: The results folder with the MLflow store.
        allow_code: Let the code of a model's own class run; read it first.

    Raises:
        InputFault: It holds neither.
    """
    from sweeps.trained_models.model_locator import model_at
    from sweeps.trained_models.trained_model import load_trained

    if (Path(path) / "sweep.yaml").is_file():
        return SweepResults(Path(path))
    with model_at(str(path), _location(results)[0]) as found:
        return LoadedModel(load_trained(found.folder, prepared=found.prepared, allow_code=allow_code))


def _run(config: SweepConfig, results: Location, retry: RetryRequest = NO_RETRY) -> SweepResults:
    from sweeps.execution.live_progress import Progress
    from sweeps.execution.run_sweep import run_sweep
    from sweeps.lanes.library_logs import log_libraries_in
    from sweeps.records.sweep_status import SweepStatus

    folder, uri = _location(results)
    log_libraries_in(folder)
    view = LiveTable if is_notebook() else Progress
    end = run_sweep(config, results_folder=folder, console=_console(), kept_at=uri, view=view, retry=retry)
    if end.halted_by is not None:
        raise InputFault(f"{end.halted_by} Then the same call resumes the sweep.")
    if end.status is SweepStatus.INTERRUPTED:
        raise KeyboardInterrupt(f"{end.folder.path} holds the trials so far; the same call resumes the sweep")
    for failed in end.parts_missing:
        _say(f"missing  {failed}")
    if end.not_tracked:
        _say(f"missing  {end.not_tracked}. The same call sends it.")
    return SweepResults(end.folder.path)


def _location(results: Location) -> tuple[Path, str | None]:
    return results_location(None if results is None else str(results))


def _console() -> Terminal:
    """A notebook draws neither progress bars in place nor colours that its kernel asks for."""
    return Terminal(width=_WIDTH, is_plain=True) if is_notebook() else terminal()


def _say(words: str) -> None:
    echo(words, file=sys.stderr)
