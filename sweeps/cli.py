"""Commands. What a command needs is imported when it runs: `pretune --help` answers at once."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from data_pipeline.input_fault import InputFault

EXIT_FAULT = 2
"""An input is wrong; nothing was started."""
EXIT_NOTHING_COMPLETED = 3
"""The sweep came to its end, and no trial completed."""
EXIT_INCOMPLETE = 4
"""Trials were given up after their workers were lost; the same command tries them again."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, or SIGTERM; the same command goes on."""

_PIPED_WIDTH = 160
_BEFORE, _SWEEP, _AFTER = "Before a sweep", "The sweep", "After a sweep"
"""Groups of commands in `--help`, in the order in which a user meets them."""
_JOB_FOLDERS = "working_dir_files"
"""Folder of Ray under which the working folders of submitted jobs stand."""

app = typer.Typer(
    name="pretune",
    help="Find the small language model that trains best inside the memory you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 2 fault in an input, 3 no trial completed, 4 trials given up, 130 interrupted.",
)

File = Annotated[Path, typer.Argument(help="Sweep file (YAML).", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, as corpus.path=my.csv. May be repeated."),
]
Results = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="FOLDER",
        help="Where results go. Default: $PRETUNE_RESULTS, else results; ~/pretune/results in a Ray job.",
    ),
]

Place = Annotated[
    Path, typer.Argument(help="A sweep's folder, a trial's, or one of Hugging Face transformers.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Entry point of `pretune`."""
    app()


def _explains_faults(command: Callable[..., None]) -> Callable[..., None]:
    """A user's mistake ends in one paragraph and exit code 2, never in a traceback."""

    @wraps(command)
    def explained(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except InputFault as fault:
            Console(stderr=True).print(f"pretune: {fault}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(EXIT_FAULT) from None
        except KeyboardInterrupt:
            Console(stderr=True).print("pretune: interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return explained


def _console() -> Console:
    # Piped or in a log nothing folds: tables are wide, and a reader greps lines.
    return Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH)


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, ensure_ascii=False))


def results_folder(given: Path | None) -> Path:
    """Where results go: as given, else $PRETUNE_RESULTS, else `results` below the current folder.

    A submitted job stands in a copy of the working folder that Ray makes for it and throws away: there the home folder
    takes the place of the current one.
    """
    is_copy = _JOB_FOLDERS in Path.cwd().parts
    default = Path.home() / "pretune" / "results" if is_copy else Path("results")
    return given or Path(os.environ.get("PRETUNE_RESULTS", default))


@app.command(rich_help_panel=_BEFORE)
@_explains_faults
def new(
    corpus: Annotated[str, typer.Argument(help="File, folder, glob or URI.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Sweep file to write.")] = Path("sweep.yaml"),
    causal: Annotated[bool, typer.Option("--causal", help="A causal LM instead of a masked one.")] = False,
) -> None:
    """Look at a corpus and this machine, and write a sweep file to begin with."""
    from sweeps.new_sweep import write_new_sweep

    console = _console()
    console.print(write_new_sweep(corpus, output, is_causal=causal), markup=False, highlight=False, soft_wrap=True)
    console.print(f"next     pretune plan {output}", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=_BEFORE)
@_explains_faults
def plan(file: File, overrides: Set = None) -> None:
    """Print what a sweep will do, without doing it: settings, trials, tokens, what fits."""
    from sweeps.plan import plan_sweep, print_plan
    from sweeps.sweep_file import load_sweep_file

    sweep = load_sweep_file(file, overrides or ())
    # Before the tokenizer is trained its size is not known; what the file allows is the upper bound.
    print_plan(plan_sweep(sweep, vocabulary_size=sweep.tokenizer.vocabulary), _console())


@app.command(rich_help_panel=_BEFORE)
@_explains_faults
def estimate(
    file: File,
    overrides: Set = None,
    memory: Annotated[str | None, typer.Option(help="Memory of one worker, as 24GiB.")] = None,
    device: Annotated[str | None, typer.Option(help='A GPU by name, as "RTX 4090".')] = None,
) -> None:
    """Print the memory of a file's configuration, part by part, and what to change so that it fits."""
    from sweeps.estimate import memory_of, print_estimate
    from sweeps.plan import plan_sweep
    from sweeps.sweep_file import load_sweep_file

    config = load_sweep_file(file, overrides or ())
    planned, name = memory_of(
        plan_sweep(config, vocabulary_size=config.tokenizer.vocabulary), memory=memory, device=device
    )
    print_estimate(planned, name, _console())


@app.command(rich_help_panel=_SWEEP)
@_explains_faults
def sweep(file: File, overrides: Set = None, results: Results = None) -> None:
    """Run a sweep, or go on with it: the same command again resumes."""
    from sweeps.sweep_file import load_sweep_file

    config = load_sweep_file(file, overrides or ())
    from sweeps.closing import print_end
    from sweeps.sweep import run_sweep

    console = _console()
    end = run_sweep(config, results_folder=results_folder(results), console=console)
    print_end(end, console, command=" ".join(["pretune", *sys.argv[1:]]))
    if end.status == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)
    if end.status == "incomplete":
        raise typer.Exit(EXIT_INCOMPLETE)
    if end.summary["best"] is None:
        raise typer.Exit(EXIT_NOTHING_COMPLETED)


@app.command(rich_help_panel=_BEFORE)
@_explains_faults
def prepare(
    file: File,
    overrides: Set = None,
    results: Results = None,
    check: Annotated[bool, typer.Option("--check", help="Read and report; write nothing, start nothing.")] = False,
) -> None:
    """Read, tokenize and pack the corpus of a sweep file, once; say what was kept and dropped."""
    from data_pipeline.check import check as check_corpus
    from sweeps.cluster import log_libraries_to
    from sweeps.preparation import prepare_with_progress, print_check, print_preparation
    from sweeps.results_folder import LOG_FILE, check_writable
    from sweeps.sweep_file import load_sweep_file

    config = load_sweep_file(file, overrides or ())
    console = _console()
    if check:
        found = check_corpus(config.corpus)
        print_check(found, console)
        if found.problem is not None:
            raise InputFault(found.problem)
        return
    folder = results_folder(results)
    check_writable(folder)
    log_libraries_to(folder / LOG_FILE)
    print_preparation(prepare_with_progress(config, folder, console), console)


@app.command(rich_help_panel=_AFTER)
@_explains_faults
def report(
    folder: Annotated[Path, typer.Argument(help="A sweep's results folder.", show_default=False)],
    pictures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write each picture there, as an SVG file.")
    ] = None,
) -> None:
    """Write report.html and EXPERIMENT.md of a sweep again."""
    import json

    from sweeps.report import write_pictures, write_report
    from sweeps.results_folder import ResultsError
    from sweeps.sweep_file import load_sweep_file
    from sweeps.trial_records import TrialStore

    if not (folder / "summary.json").exists():
        raise ResultsError(
            f"{folder} is no results folder of a sweep: it has no summary.json. Give results/<name>-<id>."
        )
    config = load_sweep_file(folder / "sweep.yaml")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    write_report(folder, config, TrialStore(folder / "trials").load_all(), summary)
    written = [folder / "report.html"]
    if pictures is not None:
        written += write_pictures(pictures, folder, config, summary)
    for path in written:
        _console().print(str(path), highlight=False, soft_wrap=True)


@app.command("fill-mask", rich_help_panel=_AFTER)
@_explains_faults
def fill_mask(
    place: Place,
    text: Annotated[str, typer.Argument(help="Text with masks, as 'the <mask> is red'.", show_default=False)],
    top: Annotated[int, typer.Option(min=1, help="Candidates for each mask.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Fill the masks of a text with a sweep's masked LM."""
    from sweeps.trained_model import load_trained

    found = load_trained(place).fill(text, num_candidates=top)
    if as_json:
        _print_json([[{"token": token, "probability": share} for token, share in mask] for mask in found])
        return
    for number, mask in enumerate(found, start=1):
        for token, share in mask:
            _console().print(f"mask {number}  {share:6.1%}  {token!r}", markup=False, highlight=False)


@app.command(rich_help_panel=_AFTER)
@_explains_faults
def generate(
    place: Place,
    prompt: Annotated[str, typer.Argument(help="Text to continue.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="At most so many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only the so many likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(min=1e-9, max=1.0, help="Only tokens up to this share.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another text.")] = 0,
) -> None:
    """Continue a text with a sweep's causal LM."""
    from core.generation import Sampling
    from sweeps.trained_model import load_trained

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    model = load_trained(place)
    for piece in model.continue_text(prompt, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed):
        typer.echo(piece, nl=False)
    typer.echo()


@app.command(rich_help_panel=_AFTER)
@_explains_faults
def evaluate(
    place: Place,
    corpus: Annotated[
        Path | None, typer.Option(help="Evaluate on all of this file or folder instead of the sweep's holdout.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Exact metrics of a sweep's model on its holdout, or on another corpus."""
    import tempfile

    from sweeps.trained_model import load_trained

    model = load_trained(place)
    with tempfile.TemporaryDirectory() as work_folder:
        metrics = model.evaluate(corpus, work_folder=Path(work_folder))
    if as_json:
        _print_json(metrics)
        return
    for name, value in metrics.items():
        _console().print(f"{name.removeprefix('holdout/'):<24} {value:.6g}", highlight=False)


@app.command(rich_help_panel=_AFTER)
@_explains_faults
def export(
    place: Place,
    target: Annotated[Path, typer.Argument(help="Folder to write; must not be there yet.", show_default=False)],
) -> None:
    """Write a sweep's model as a folder that Hugging Face transformers loads."""
    from sweeps.trained_model import load_trained

    load_trained(place).export(target)
    _console().print(str(target), highlight=False, soft_wrap=True)


@app.command(rich_help_panel=_AFTER)
@_explains_faults
def ui(
    results: Results = None,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine alone.")] = "127.0.0.1",
) -> None:
    """Open the MLflow UI on the runs of all sweeps."""
    from sweeps.mlflow_ui import serve_ui

    serve_ui(results_folder(results), host=host, port=port, console=_console())
