"""Commands that put a trained model to use: fine-tuning for classes, feature vectors."""

from pathlib import Path
from typing import Annotated

import typer

from data_pipeline.schema.user_errors import InputFault
from sweeps.commands.after_sweep import ModelName
from sweeps.commands.command_frame import AsJson, Results, Set, explains_faults, print_json, results_folder, terminal

Rows = Annotated[str, typer.Argument(help="CSV, TSV, JSONL or Parquet: a file, folder or glob.", show_default=False)]
TextColumn = Annotated[
    str | None, typer.Option("--text", metavar="COLUMN", help="Column of the texts. Default: told by its name.")
]
_WITH_A_FILE = ("file_or_model", "overrides", "out", "results", "as_json")
"""Parameters of `finetune` that may stand beside a file."""


@explains_faults
def finetune(
    context: typer.Context,
    file_or_model: Annotated[
        str,
        typer.Argument(
            metavar="FILE|MODEL",
            help="File of a fine-tuning (YAML), which says all the rest; or a model, as the other commands take it.",
            show_default=False,
        ),
    ],
    table: Annotated[
        str | None,
        typer.Argument(
            help="With a model: labelled rows, as CSV, TSV, JSONL or Parquet: a file, folder or glob.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--classify", metavar="COLUMN", help="With a model: column of the classes.", show_default=False),
    ] = None,
    text: TextColumn = None,
    epochs: Annotated[
        list[float] | None,
        typer.Option(min=0.01, help="Passes over the rows. May be repeated: each is tried. Default: 10."),
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Rows a step. May be repeated: each is tried. Default: 32.")
    ] = None,
    learning_rate: Annotated[
        list[float] | None,
        typer.Option(
            help="Peak of a linear schedule. May be repeated: each is tried. Default: 5e-5 x 768 / the model's width."
        ),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="May be repeated: each is tried. Default: 0.")] = None,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Train the same from random weights, too: what was pretraining worth?"),
    ] = False,
    dropout: Annotated[float, typer.Option(min=0.0, max=0.9)] = 0.1,
    holdout: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of the texts held out.")] = 0.2,
    least_rows: Annotated[int, typer.Option(min=1, help="Leave out classes of fewer rows.")] = 1,
    max_tokens: Annotated[
        int | None, typer.Option(help="Cut texts to this number of tokens. Default: what the model takes.")
    ] = None,
    micro_batch_size: Annotated[int | None, typer.Option(min=1, help="Rows at once. Default: chosen.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="For training, as 2GiB; what does not fit goes through in smaller pieces.")
    ] = None,
    overrides: Set = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For what comes out. Default: in the results folder.")
    ] = None,
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Teach an encoder to tell classes of texts apart.

    Writes the model as Hugging Face transformers loads it, metrics.json, predictions.csv, report.html and
    confusion.svg, and records runs in MLflow. The epoch, and among several settings the run, of the lowest holdout loss
    is kept. Equal texts stand on one side of the split. The same command again resumes where it stopped.
    """
    import io

    from rich.console import Console

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
                f"{file_or_model} is no file of a fine-tuning (.yaml), so it is taken for a model; give the labelled "
                "rows and the column of their classes as well: pretune finetune MODEL ROWS.csv --classify COLUMN"
            )
        if overrides:
            raise InputFault(f"--set {overrides[0]}: overrides a setting of a file, and {file_or_model} is none")
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
    console = Console(file=io.StringIO()) if as_json else terminal()
    figures, folder = carry_out(request, results_folder=results_folder(results), target=out, console=console)
    if as_json:
        print_json(figures)
    else:
        print_figures(figures, str(folder), console)


def _refuse_beside_a_file(context: typer.Context, file: str) -> None:
    """Name every option that says what the file says."""
    given = [
        parameter.opts[-1] if parameter.param_type_name == "option" else str(context.params[name])
        for parameter in context.command.params
        if (name := parameter.name or "") not in _WITH_A_FILE
        and (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    ]
    if given:
        raise InputFault(
            f"{', '.join(given)}: {file} says all of that; change it there, or with --set, as --set training.epochs=4"
        )


@explains_faults
def embed(
    model_name: ModelName,
    table: Rows,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Parquet file to write.", show_default=False)],
    text: TextColumn = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Column that goes along, as an id. May be repeated.")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            help="mean: over the text's tokens. first: of <s>, encoders only. last: of its last token. "
            "Default: mean; last for decoders."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at once.")] = 32,
    max_tokens: Annotated[
        int | None, typer.Option(help="Cut texts to this number of tokens. Default: what the model takes.")
    ] = None,
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Write a feature vector for every text to Parquet.

    Columns: row (number in the table, from 0), those of --keep, features (float32, as many as the model is wide).
    """
    from dataclasses import asdict
    from typing import get_args

    from core.models.decoder import LlamaDecoder
    from core.models.text_features import Pooling
    from sweeps.trained_models.embed import embed as carry_out
    from sweeps.trained_models.model_locator import model_at
    from sweeps.trained_models.trained_model import load_trained

    if pool is not None and pool not in get_args(Pooling):
        raise InputFault(f"--pool {pool}: known are {', '.join(get_args(Pooling))}")
    with model_at(model_name, results_folder(results)) as found_at:
        trained = load_trained(found_at.folder)
        pooling = pool or ("last" if isinstance(trained.model, LlamaDecoder) else "mean")
        done = carry_out(
            trained,
            table,
            out,
            text=text,
            keep=keep or (),
            pooling=pooling,  # type: ignore[arg-type]  # one of its words, as checked
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
