"""Prepare a sweep's corpus with progress on the terminal, and say what was read, kept and dropped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from data_pipeline.corpus import Corpus, ParcelWork, for_each_parcel
from data_pipeline.manifest import Manifest
from data_pipeline.prepare import PrepareProgress, prepare
from data_pipeline.token_blocks import PreparedCorpus
from sweeps.cluster import connect
from sweeps.sweep_config import SweepConfig


def prepare_with_progress(sweep: SweepConfig, results_folder: Path, console: Console) -> PreparedCorpus:
    """The sweep's token blocks: opened when they are there, else made with Ray Data.

    Raises:
        CorpusError: The corpus is missing, empty, or too much of it is rejected.
    """
    folder = results_folder.absolute() / "prepared"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(progress: PrepareProgress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bars.add_task(f"{progress.phase} ({progress.unit})", total=progress.total)
            bars.update(tasks[progress.phase], completed=progress.done, total=progress.total)

        return prepare(
            sweep.corpus, sweep.tokenizer, sweep.packing, prepared_folder=folder, on_progress=show, run=_on_ray
        )


def _on_ray(corpus: Corpus, work: ParcelWork) -> Iterator[dict[str, Any]]:
    # Ray takes seconds to start, and blocks that are there need none.
    connect()
    return for_each_parcel(corpus, work)


def data_figures(data: PreparedCorpus) -> dict[str, Any]:
    """Figures of the prepared corpus for summary.json and the report."""
    manifest = data.manifest
    return {
        "fingerprint": data.fingerprint,
        "folder": str(data.folder),
        "files": len(manifest.files),
        "rows_read": manifest.rows_read,
        "rows_kept": manifest.rows_kept,
        "rows_rejected": manifest.rows_rejected,
        "rejects_by_reason": manifest.rejects,
        "vocabulary": data.vocabulary.size,
        "train_rows": data.train.num_rows,
        "train_tokens": data.train.num_tokens,
        "holdout_rows": data.holdout.num_rows,
        "holdout_tokens": data.holdout.num_tokens,
    }


def corpus_table(manifest: Manifest) -> Table:
    """What was read, kept and dropped, file by file."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("file", "format", "encoding"):
        table.add_column(name)
    for name in ("rows read", "kept", "rejected"):
        table.add_column(name, justify="right")
    for file in manifest.files:
        counts = (f"{file.rows_read:,}", f"{file.rows_kept:,}", f"{file.rows_rejected:,}")
        table.add_row(Path(file.path).name, file.format, file.encoding or "", *counts)
    return table


def corpus_in_words(data: PreparedCorpus) -> str:
    """One line on the corpus."""
    manifest = data.manifest
    rejects = ", ".join(f"{count:,} {reason}" for reason, count in sorted(manifest.rejects.items()))
    rejected = f", {manifest.rows_rejected:,} rejected ({rejects})" if manifest.rows_rejected else ""
    return (
        f"{manifest.rows_kept:,} of {manifest.rows_read:,} documents kept{rejected}; "
        f"{data.train.num_tokens:,} tokens to train on, {data.holdout.num_tokens:,} held out, "
        f"vocabulary {data.vocabulary.size:,}"
    )
