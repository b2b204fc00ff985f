"""Commands before a sweep: write a sweep file, show the plan and the memory, prepare the corpus."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from data_pipeline.schema.redaction import redact
from data_pipeline.schema.terminal_text import echo
from data_pipeline.schema.user_errors import InputFault
from sweeps.commands.command_frame import (
    EXIT_FAULT,
    AllowCode,
    AsJson,
    File,
    Results,
    Set,
    explains_faults,
    print_json,
    results_folder,
    terminal,
)
from sweeps.commands.lost_terminal import outlives_its_terminal
from sweeps.commands.terminal import Terminal
from sweeps.records.printed_commands import command_line


@explains_faults
def new(
    corpus: Annotated[str, typer.Argument(help="File, folder, glob or URI.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Sweep file to write.")] = Path("sweep.yaml"),
    causal: Annotated[bool, typer.Option("--causal", help="Train a causal LM instead of a masked LM.")] = False,
) -> None:
    """Write a first sweep file for a corpus and this machine."""
    from sweeps.planning.new_sweep import write_new_sweep

    echo(redact(write_new_sweep(corpus, output, is_causal=causal)))
    terminal().print(f"next     {command_line('plan', output)}", highlight=False, soft_wrap=True)


@explains_faults
def schema() -> None:
    """Print the JSON schema of a sweep file, for editors.

    Files that `pretune new` writes name a copy beside them, so an editor needs no network.
    """
    import json

    from sweeps.settings.file_schema import sweep_file_schema

    echo(json.dumps(sweep_file_schema(), indent=1))


@explains_faults
def plan(
    file: File,
    overrides: Set = None,
    results: Results = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure the speed of this machine for some seconds.")
    ] = True,
    everything: Annotated[bool, typer.Option("--all", help="Also every default and the reasons.")] = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Show a sweep's trials, time, price and memory; train nothing.

    The time comes from earlier trials of the same shape, or from a measurement of some seconds.
    """
    from sweeps.settings.class_of_file import permit_class
    from sweeps.settings.sweep_file import load_sweep_file
    from sweeps.tracking.mirrors import check_mirrors

    asked = load_sweep_file(file, overrides or ())
    permit_class(asked.model, is_trusted=asked.trust_code or allow_code)
    check_mirrors(asked.tracking.mirror)
    # torch takes seconds to import, so a mistake in the file is reported first.
    from sweeps.planning.plan_facts import gather_facts
    from sweeps.planning.plan_output import plan_as_json, print_plan
    from sweeps.planning.sweep_plan import predictions_kept

    folder = results_folder(results)
    with predictions_kept(folder, say=_say_beside):
        facts = gather_facts(asked, folder, may_measure=measure)
        if as_json:
            print_json(plan_as_json(facts))
        else:
            print_plan(facts, terminal(), everything=everything)


@explains_faults
def estimate(
    file: File,
    overrides: Set = None,
    memory: Annotated[str | None, typer.Option(help="Memory of one worker, e.g. 24GiB.")] = None,
    device: Annotated[str | None, typer.Option(help='GPU by name, e.g. "RTX 4090".')] = None,
    results: Results = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Show the memory of one configuration by part."""
    from dataclasses import asdict

    from sweeps.planning.memory_estimate import expected_estimate, print_estimate
    from sweeps.settings.class_of_file import permit_class
    from sweeps.settings.sweep_file import load_sweep_file

    asked = load_sweep_file(file, overrides or ())
    permit_class(asked.model, is_trusted=asked.trust_code or allow_code)
    found = expected_estimate(asked, results_folder(results), memory=memory, device=device, say=_say_beside)
    if as_json:
        print_json(asdict(found))
    else:
        print_estimate(found, terminal())


@explains_faults
def check_model(
    file: File,
    overrides: Set = None,
    results: Results = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Check a class of your own (model.class) on a few rows.

    One line a check, with the place of each fault. Exit code 0: it may be trained; 2: it may not.
    """
    from dataclasses import asdict

    from sweeps.settings.class_of_file import permit_class
    from sweeps.settings.sweep_file import load_sweep_file

    config = load_sweep_file(file, overrides or ())
    if config.model.class_ is None:
        raise InputFault(
            f"{file} names no class of yours; give model.class, as in model: {{class: my_module.py:MyModel}}"
        )
    permit_class(config.model, is_trusted=config.trust_code or allow_code)
    from sweeps.planning.resolved_sweep import ExpectedSweep
    from sweeps.search.class_check import class_results

    expected, found = ExpectedSweep(config, results_folder(results)), []
    for result in class_results(expected.begun, expected.vocabulary_size):
        found.append(result)
        if not as_json:
            mark = "ok   " if result.fault is None else "fault"
            line = f"{mark}  {result.name:<14} {result.fault or result.note}"
            terminal().print(line, highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print_json([asdict(result) for result in found])
    if any(result.fault is not None for result in found):
        raise typer.Exit(EXIT_FAULT)


@explains_faults
def prepare(
    file: File,
    overrides: Set = None,
    results: Results = None,
    check: Annotated[bool, typer.Option("--check", help="Read and report only; write no files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read, tokenize and pack the corpus; show the rejects.

    A prepared corpus is reused: a sweep on the same corpus skips this step.
    """
    from dataclasses import asdict

    from sweeps.settings.sweep_file import load_sweep_file

    # A mistake in the file is reported before anything slow is imported.
    config = load_sweep_file(file, overrides or ())

    from data_pipeline.preparation.corpus_check import check as check_corpus
    from sweeps.planning.preparation import data_figures, print_check, print_preparation
    from sweeps.planning.resolved_sweep import ExpectedSweep, PreparedSweep

    console, folder = terminal(), results_folder(results)
    if check:
        _ = ExpectedSweep(config, folder).begun  # The checks of every command.
        found = check_corpus(config.corpus)
        if as_json:
            print_json(asdict(found) | {"files": [file.model_dump(mode="json") for file in found.files]})
        else:
            print_check(found, console)
        if found.problem is not None:
            raise InputFault(found.problem)
        return
    from sweeps.lanes.library_logs import log_libraries_in

    log_libraries_in(folder)
    with outlives_its_terminal(folder):
        # A script reads stdout, so progress goes to stderr.
        data = PreparedSweep(config, folder, Terminal(stderr=True) if as_json else console).data
        if as_json:
            print_json(data_figures(data))
        else:
            print_preparation(data, console)


def _say_beside(words: str) -> None:
    """Print a line on stderr: a script reads stdout."""
    echo(f"memory   {words}", file=sys.stderr)
