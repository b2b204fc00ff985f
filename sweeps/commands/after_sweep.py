"""Commands after a sweep: report, MLflow pages, evaluation and use of its models."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from data_pipeline.schema.terminal_text import echo
from data_pipeline.schema.user_errors import InputFault
from sweeps.commands.command_frame import (
    EXIT_PARTS_MISSING,
    AllowCode,
    AsJson,
    Results,
    explains_faults,
    print_json,
    results_folder,
    terminal,
)
from sweeps.commands.terminal import Terminal

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder or name of a sweep, folder of a trial or of Hugging Face transformers, runs:/ID or models:/NAME.",
        show_default=False,
    ),
]

Source = Annotated[
    str | None,
    typer.Option("--input", metavar="FILE", help="Read the texts from a file: CSV, JSONL, Parquet or lines."),
]
Output = Annotated[
    Path | None, typer.Option(metavar="FILE", help="With --input: write JSON lines here. Default: stdout.")
]
Column = Annotated[
    str | None, typer.Option("--text", metavar="COLUMN", help="With --input: text column. Default: detected by name.")
]


@explains_faults
def report(
    folder: Annotated[Path, typer.Argument(help="Results folder of a sweep.", show_default=False)],
    other: Annotated[
        Path | None, typer.Argument(help="Second results folder to compare with.", show_default=False)
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write each figure to this folder as SVG.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rewrite a sweep's report, or compare two sweeps.

    One folder: writes report.html and EXPERIMENT.md into it; --json prints the summary. Two folders: prints the results
    of both sweeps and the differences of their settings.
    """
    from dataclasses import asdict

    from sweeps.records.result_parts import ResultParts
    from sweeps.records.results_folder import read_summary
    from sweeps.records.trial_records import TrialStore
    from sweeps.report.compare_sweeps import compare_sweeps, print_comparison
    from sweeps.report.report import write_pictures, write_report
    from sweeps.settings.sweep_file import load_sweep_file

    if other is not None:
        found = compare_sweeps(folder, other)
        if as_json:
            print_json(asdict(found))
        else:
            print_comparison(found, terminal())
        return
    summary = read_summary(folder)
    config = load_sweep_file(folder / "sweep.yaml")
    parts = ResultParts(folder)
    write_report(folder, config, TrialStore(folder / "trials").load_all(), summary, parts)
    written = [folder / "report.html"]
    if pictures is not None:
        written += write_pictures(pictures, folder, config, summary)
    if as_json:
        print_json(summary)
    else:
        for path in written:
            terminal().print(str(path), highlight=False, soft_wrap=True)
    for failed in parts.failed:
        Terminal(stderr=True).print(f"missing  {failed}", highlight=False, soft_wrap=True)
    if parts.failed:
        raise typer.Exit(EXIT_PARTS_MISSING)


@explains_faults
def fill_mask(
    model_name: ModelName,
    text: Annotated[
        str | None, typer.Argument(help="Text with masks, e.g. 'the <mask> is red'. Default: prompt for texts.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of candidates for each mask.")] = 5,
    source: Source = None,
    output: Output = None,
    column: Column = None,
    allow_code: AllowCode = False,
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Fill the masks of a text with a masked LM.

    Without a text, a terminal prompts for lines until ctrl-d. --input fills all texts of a file and writes one JSON
    line per text: {row, text, masks}.
    """
    from sweeps.trained_models.batch_prompts import answer_file, answer_typed, is_typed
    from sweeps.trained_models.model_locator import model_at
    from sweeps.trained_models.trained_model import load_trained

    console = terminal()
    with model_at(model_name, results_folder(results)) as found_at:
        model = load_trained(found_at.folder, prepared=found_at.prepared, allow_code=allow_code)

        def filled(text: str) -> list[list[dict[str, Any]]]:
            found = model.fill(text, num_candidates=top)
            return [[{"token": token, "probability": share} for token, share in mask] for mask in found]

        def show(text: str) -> None:
            for number, mask in enumerate(filled(text), start=1):
                for one in mask:
                    words = f"mask {number}  {one['probability']:6.1%}  {one['token']!r}"
                    console.print(words, markup=False, highlight=False)

        if source is not None:
            _one_of(text, source)
            answer_file(source, output, lambda text: {"masks": filled(text)}, text=column, say=_aside)
        elif text is not None and as_json:
            print_json(filled(text))
        elif text is not None:
            show(text)
        elif is_typed():
            answer_typed("text> ", show, say=_aside)
        else:
            raise InputFault("nothing to fill: give a text with masks, or --input FILE")


@explains_faults
def generate(
    model_name: ModelName,
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue, or question to answer. Default: prompt for texts.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Generate at most this many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature. 0: greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample only from the K most likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=1e-9, max=1.0, help="Nucleus sampling: probability mass to keep.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    source: Source = None,
    output: Output = None,
    column: Column = None,
    chat: Annotated[bool, typer.Option("--chat", help="Converse, one line per turn; also reads piped lines.")] = False,
    system: Annotated[str | None, typer.Option(help="System prompt of a conversation.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Continue texts without the chat template.")] = False,
    allow_code: AllowCode = False,
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text, or answer, with a causal LM.

    A model trained on conversations answers with the chat template in its folder. Without a prompt, a terminal prompts
    for lines until ctrl-d; piped, the model starts a text of its own. --input answers all texts of a file and writes
    one JSON line per text: {row, text, continuation}.
    """
    from core.models.generation import Sampling
    from sweeps.trained_models.batch_prompts import answer_file, answer_typed, is_typed
    from sweeps.trained_models.chat import Conversation, Speaker
    from sweeps.trained_models.model_locator import model_at
    from sweeps.trained_models.trained_model import load_trained

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    with model_at(model_name, results_folder(results)) as found_at:
        model = load_trained(found_at.folder, prepared=found_at.prepared, allow_code=allow_code)
        speaker = Speaker(model, sampling, max_new_tokens, seed, system, plain)
        pieces = speaker.says

        def show(text: str, said: Callable[[str], Iterator[str]] = pieces) -> None:
            for piece in said(text):
                echo(piece, end="")
            echo("")

        if chat and (prompt is not None or source is not None or as_json):
            raise InputFault("--chat reads the conversation from stdin; remove the prompt, --input and --json")
        if source is not None:
            _one_of(prompt, source)
            answer_file(source, output, lambda text: {"continuation": "".join(pieces(text))}, text=column, say=_aside)
        elif as_json:
            print_json({"prompt": prompt or "", "continuation": "".join(pieces(prompt or ""))})
        elif prompt is None and is_typed():
            said = Conversation(speaker).reply if chat or speaker.answers else pieces
            answer_typed("prompt> ", lambda text: show(text, said), say=_aside)
        elif chat:
            said = Conversation(speaker).reply
            for line in typer.get_text_stream("stdin"):
                if line.strip():
                    show(line.strip(), said)
        else:
            show(prompt or "")


def _aside(words: str) -> None:
    """Print to stderr: a program may read the answers on stdout."""
    echo(words, file=sys.stderr)


def _one_of(text: str | None, source: str) -> None:
    if text is not None:
        raise InputFault(f"give a text or --input {source}, not both")


@explains_faults
def evaluate(
    model_name: ModelName,
    corpus: Annotated[
        Path | None, typer.Option(help="Evaluate on this file or folder instead of the sweep's holdout.")
    ] = None,
    all_tokens: Annotated[
        bool, typer.Option("--all-tokens", help="Masked LM: also report the accuracy over all tokens, masked or not.")
    ] = False,
    allow_code: AllowCode = False,
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on its holdout or on a corpus."""
    import tempfile

    from sweeps.trained_models.model_locator import model_at
    from sweeps.trained_models.trained_model import load_trained

    with tempfile.TemporaryDirectory() as work_folder, model_at(model_name, results_folder(results)) as found_at:
        metrics = load_trained(found_at.folder, prepared=found_at.prepared, allow_code=allow_code).evaluate(
            corpus, work_folder=Path(work_folder), all_tokens=all_tokens
        )
    if as_json:
        print_json(metrics)
        return
    for name, value in metrics.items():
        terminal().print(f"{name.removeprefix('holdout/'):<24} {value:.6g}", highlight=False)


@explains_faults
def export(
    model_name: ModelName,
    target: Annotated[Path, typer.Argument(help="Folder to write; must not exist yet.", show_default=False)],
    allow_code: AllowCode = False,
    results: Results = None,
) -> None:
    """Export a model as a folder for Hugging Face transformers."""
    from sweeps.trained_models.model_locator import model_at
    from sweeps.trained_models.trained_model import load_trained

    with model_at(model_name, results_folder(results)) as found_at:
        load_trained(found_at.folder, prepared=found_at.prepared, allow_code=allow_code).export(target)
    terminal().print(str(target), highlight=False, soft_wrap=True)


@explains_faults
def ui(
    results: Results = None,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on. The default accepts local requests only.")
    ] = "127.0.0.1",
    login: Annotated[
        bool,
        typer.Option(
            "--login",
            help="Ask visitors for the name admin and a password: $MLFLOW_AUTH_ADMIN_PASSWORD, or type it.",
        ),
    ] = False,
) -> None:
    """Serve the MLflow pages of all sweeps."""
    from sweeps.tracking.mlflow_ui import serve_ui

    serve_ui(results_folder(results), host=host, port=port, console=terminal(), asks_login=login)
