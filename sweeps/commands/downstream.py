"""Commands that use a trained model: fine-tuning for classification, feature vectors."""

from pathlib import Path
from typing import Annotated

import typer

from data_pipeline.schema.user_errors import InputFault
from sweeps.commands.after_sweep import ModelName
from sweeps.commands.command_frame import (
    AllowCode,
    AsJson,
    Results,
    Set,
    explains_faults,
    print_json,
    results_folder,
    terminal,
)
from sweeps.commands.lost_terminal import outlives_its_terminal
from sweeps.commands.terminal import Terminal

Rows = Annotated[
    str, typer.Argument(help="Rows as CSV, TSV, JSONL or Parquet: file, folder or glob.", show_default=False)
]
TextColumn = Annotated[
    str | None, typer.Option("--text", metavar="COLUMN", help="Column of the texts. Default: detected by name.")
]
_WITH_A_FILE = ("file_or_model", "overrides", "out", "results", "as_json")
"""Parameters of `finetune` that remain valid beside a file."""


@explains_faults
def finetune(
    context: typer.Context,
    file_or_model: Annotated[
        str,
        typer.Argument(
            metavar="FILE|MODEL",
            help="Fine-tuning file (YAML), which holds all settings; or a model, as for the other commands.",
            show_default=False,
        ),
    ],
    table: Annotated[
        str | None,
        typer.Argument(
            help="With a model: labelled rows as CSV, TSV, JSONL or Parquet: file, folder or glob.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--classify", metavar="COLUMN", help="With a model: column of the labels.", show_default=False),
    ] = None,
    text: TextColumn = None,
    epochs: Annotated[
        list[float] | None,
        typer.Option(min=0.01, help="Passes over the rows. Repeatable: each value is tried. Default: 10."),
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Rows per step. Repeatable: each value is tried. Default: 32.")
    ] = None,
    learning_rate: Annotated[
        list[float] | None,
        typer.Option(
            help="Peak of a linear schedule. Repeatable: each value is tried. Default: 5e-5 x 768 / width of the model."
        ),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Repeatable: each value is tried. Default: 0.")] = None,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Also train from random weights, to show the gain from pretraining."),
    ] = False,
    dropout: Annotated[float, typer.Option(min=0.0, max=0.9, help="Dropout during training.")] = 0.1,
    holdout: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of the texts to hold out.")] = 0.2,
    least_rows: Annotated[int, typer.Option(min=1, help="Ignore classes with fewer rows.")] = 1,
    max_tokens: Annotated[
        int | None, typer.Option(help="Truncate texts to this many tokens. Default: the model's maximum.")
    ] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows per forward pass. Default: automatic.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory limit for training, e.g. 2GiB; micro-batches shrink to fit.")
    ] = None,
    overrides: Set = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Output folder. Default: a folder in the results folder.")
    ] = None,
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune an encoder to classify texts.

    Writes the model for Hugging Face transformers, metrics.json, predictions.csv, report.html and confusion.svg, and
    records runs in MLflow. Keeps the epoch (and, among several settings, the run) with the lowest holdout loss. Equal
    texts are on the same side of the split. The same command again resumes an interrupted fine-tuning.
    """
    import io

    from data_pipeline.schema.settings import parse_bytes
    from sweeps.finetuning.finetune_command import carry_out
    from sweeps.finetuning.finetune_report import print_figures
    from sweeps.finetuning.finetune_request import FinetuneRequest, request_of_file
    from sweeps.finetuning.finetune_settings import FinetuneSettings

    if Path(file_or_model).suffix in (".yaml", ".yml"):
        _refuse_beside_a_file(context, file_or_model)
        request = request_of_file(file_or_model, overrides or [])
    else:
        if table is None or label is None:
            raise InputFault(
                f"{file_or_model} is not a fine-tuning file (.yaml), so it must be a model; also give the labelled "
                "rows and the column of their labels: pretune finetune MODEL ROWS.csv --classify COLUMN"
            )
        if overrides:
            raise InputFault(
                f"--set {overrides[0]}: overrides a setting of a fine-tuning file (.yaml), and {file_or_model} is a "
                "model; use the options of this command instead"
            )
        try:
            memory_bytes = None if memory is None else int(parse_bytes(memory))
        except ValueError as error:
            raise InputFault(f"--memory {memory}: {error}") from error
        settings = FinetuneSettings(
            label=label,
            text=text,
            epochs=tuple(epochs or (10.0,)),
            batch_sizes=tuple(batch_size or (32,)),
            learning_rates=tuple(learning_rate or ()),
            seeds=tuple(seed or (0,)),
            from_scratch=from_scratch,
            dropout=dropout,
            holdout=holdout,
            least_rows=least_rows,
            max_tokens=max_tokens,
            micro_batch_size=micro_batch_size,
            memory_bytes=memory_bytes,
        )
        request = FinetuneRequest(settings=settings, weights_of=file_or_model, table=table)
    console = Terminal(file=io.StringIO()) if as_json else terminal()
    results_at = results_folder(results)
    with outlives_its_terminal(results_at):
        figures, folder = carry_out(request, results_folder=results_at, target=out, console=console)
        if as_json:
            print_json(figures)
        else:
            print_figures(figures, str(folder), console)


def _refuse_beside_a_file(context: typer.Context, file: str) -> None:
    """Refuse the options that set values of the file.

    Raises:
        InputFault: At least one was given; the message names all of them.
    """
    given = [
        parameter.opts[-1] if parameter.param_type_name == "option" else str(context.params[name])
        for parameter in context.command.params
        if (name := parameter.name or "") not in _WITH_A_FILE
        and (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    ]
    if given:
        raise InputFault(
            f"{', '.join(given)}: {file} already sets this; change the file, or override it with --set, e.g. "
            "--set training.epochs=4"
        )


@explains_faults
def embed(
    model_name: ModelName,
    table: Rows,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Parquet file to write.", show_default=False)],
    text: TextColumn = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Column to copy, e.g. an id. Repeatable.")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            help="Pooling. mean: over all tokens. first: <s>, encoders only. last: the last token. "
            "Default: mean for encoders, last for decoders."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 32,
    max_tokens: Annotated[
        int | None, typer.Option(help="Truncate texts to this many tokens. Default: the model's maximum.")
    ] = None,
    allow_code: AllowCode = False,
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Write one feature vector per text to a Parquet file.

    Columns: row (number in the table, from 0), the columns of --keep, features (float32, one value per unit of width).
    """
    from dataclasses import asdict
    from typing import get_args

    from core.models.text_features import Pooling
    from sweeps.trained_models.embed import embed as carry_out
    from sweeps.trained_models.model_locator import model_at
    from sweeps.trained_models.trained_model import load_trained

    if pool is not None and pool not in get_args(Pooling):
        raise InputFault(f"--pool {pool}: is unknown; choose one of {', '.join(get_args(Pooling))}")
    with model_at(model_name, results_folder(results)) as found_at:
        trained = load_trained(found_at.folder, allow_code=allow_code)
        pooling = pool or ("last" if trained.model.is_causal else "mean")
        done = carry_out(
            trained,
            table,
            out,
            text=text,
            keep=keep or (),
            pooling=pooling,  # type: ignore[arg-type]  # checked above
            batch_size=batch_size,
            max_tokens=max_tokens,
        )
    if as_json:
        print_json({"file": str(out), "pooling": pooling} | asdict(done))
        return
    rest = "".join(
        f", {count:,} {what}" for count, what in ((done.num_rejected, "rejected"), (done.num_cut, "cut")) if count
    )
    terminal().print(f"{out}: {done.num_rows:,} rows of {done.width} numbers, {pooling}{rest}", highlight=False)
