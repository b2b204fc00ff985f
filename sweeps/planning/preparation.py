"""Prepare a sweep's corpus with progress on the terminal, and report the rows read, kept and rejected."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from data_pipeline.files.disk_room import RESERVE_BYTES, check_room, room_named
from data_pipeline.preparation.corpus_check import BYTES_OF_TOKEN, CheckReport
from data_pipeline.preparation.prepare import PrepareProgress, prepare
from data_pipeline.reading.corpus import Corpus
from data_pipeline.reading.corpus_files import find_files
from data_pipeline.reading.parcel_tasks import ParcelWork, for_each_parcel, for_each_parcel_here
from data_pipeline.schema.manifest import FileReport, Manifest, PassedOver
from data_pipeline.schema.settings import format_bytes
from data_pipeline.tokens.token_blocks import PreparedCorpus
from sweeps.settings.sweep_config import SweepConfig

_SHOWN_FILES = 30
_FEWEST_BYTES_ON_RAY = 64 << 20
"""Text of a corpus, after decompression, below which starting Ray takes longer than it saves."""


def prepare_with_progress(
    sweep: SweepConfig, results_folder: Path, console: Console, *, fetch: Callable[[Path], None] = lambda _: None
) -> PreparedCorpus:
    """The prepared corpus of a sweep: reused if it exists, else built, with Ray Data if it is not small.

    Args:
        fetch: Called with the folder of the prepared corpus before it is built; may download it.

    Raises:
        CorpusError: The corpus is missing, empty, or has too many rejects.
    """
    folder = results_folder.absolute() / "prepared"

    def fetch_or_check_room(corpus: Path) -> None:
        fetch(corpus)
        if not corpus.is_dir():
            check_room(folder, corpus_bytes(sweep) + RESERVE_BYTES)

    columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[done]}"), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(progress: PrepareProgress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bars.add_task(progress.phase, total=progress.total, done="")
            bars.update(
                tasks[progress.phase], completed=progress.done, total=progress.total, done=_done_in_words(progress)
            )

        try:
            return prepare(
                sweep.corpus,
                sweep.tokenizer,
                sweep.packing,
                prepared_folder=folder,
                on_progress=show,
                run=_on_ray,
                fetch=fetch_or_check_room,
                wanted="texts" if sweep.objective.sft is None else "conversations",
            )
        except OSError:
            with room_named(folder / "corpus", corpus_bytes(sweep)):
                raise


def corpus_bytes(sweep: SweepConfig) -> int:
    """About the bytes of the prepared corpus: each token of its text in two or four bytes.

    Compressed files count as they are, which is too little.

    Raises:
        CorpusError: There is nothing to read.
    """
    text = sum(file.num_bytes for file in find_files(sweep.corpus).files)
    width = 4 if sweep.tokenizer.kind != "file" and sweep.tokenizer.vocabulary > 1 << 16 else 2
    return round(text / BYTES_OF_TOKEN * width)


def _done_in_words(progress: PrepareProgress) -> str:
    if progress.unit != "bytes":
        return f"{progress.done:,} {progress.unit}"
    # Some phases know their total only at the end.
    return "" if progress.total is None else f"{format_bytes(progress.done)} of {format_bytes(progress.total)}"


def _on_ray(corpus: Corpus, work: ParcelWork) -> Iterator[dict[str, Any]]:
    if corpus.num_plain_bytes < _FEWEST_BYTES_ON_RAY:
        return for_each_parcel_here(corpus, work)
    # Connect only here: Ray takes seconds to import and to start, and an existing or small corpus does not need it.
    from sweeps.lanes.library_logs import log_ray_there_too
    from sweeps.lanes.ray_session import connect

    log_ray_there_too()
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
    } | _answer_figures(manifest)


def _answer_figures(manifest: Manifest) -> dict[str, Any]:
    """Figures that only conversations have."""
    rows = manifest.rows.values()
    if not manifest.has_targets:
        return {}
    return {
        "train_answer_tokens": manifest.rows["train"].num_answer_tokens,
        "holdout_answer_tokens": manifest.rows["holdout"].num_answer_tokens,
        "conversations_split": sum(one.num_split for one in rows),
        "answers_cut": sum(one.num_cut_answers for one in rows),
        "answers_lost": sum(one.num_lost_answers for one in rows),
        "chat_template": manifest.chat_template,
    }


def _long_conversations(manifest: Manifest) -> str:
    """Treatment of conversations longer than a row, as text; empty if there are none."""
    rows = manifest.rows.values()
    longest = manifest.packing.sequence_length
    parts = {
        f"conversations are longer than a row of {longest} tokens and were split behind answers": [
            one.num_split for one in rows
        ],
        "answers are cut at the end of a row": [one.num_cut_answers for one in rows],
        "answers are in no row": [one.num_lost_answers for one in rows],
    }
    return ", ".join(f"{sum(counts):,} {what}" for what, counts in parts.items() if sum(counts))


def print_preparation(data: PreparedCorpus, console: Console) -> None:
    """Print the rows read, kept and rejected, and the figures of tokens and tokenizer."""
    manifest, tokenizer = data.manifest, data.manifest.tokenizer_report
    _print_files(manifest.files, manifest.passed_over, manifest.rejects, manifest.corpus.documents, console)
    if manifest.rows_rejected:
        console.print(f"             all rejects: {data.folder / 'rejects.jsonl'}", highlight=False, soft_wrap=True)
    if manifest.rows_duplicate:
        what = "dropped" if manifest.corpus.drop_duplicates else "kept; corpus.drop_duplicates: true drops them"
        console.print(
            f"duplicates   {manifest.rows_duplicate:,} of the rows kept repeat an earlier text: {what}",
            highlight=False,
            soft_wrap=True,
        )
    long = _long_conversations(manifest)
    if long:
        console.print(f"too long     {long}", highlight=False, soft_wrap=True)
    tokens = sum(split.num_tokens for split in manifest.splits.values())
    facts = {
        "tokens": f"{tokens:,}: {data.train.num_tokens:,} to train on, {data.holdout.num_tokens:,} held out",
        "rows": f"{data.train.num_rows:,} and {data.holdout.num_rows:,} of {data.train.sequence_length} tokens, "
        f"{manifest.padding_share:.1%} padding, {manifest.truncated_share:.1%} of the tokens truncated",
        "tokenizer": f"{tokenizer.vocabulary_size:,} entries, {tokenizer.bytes_per_token:.2f} bytes a token, "
        f"{tokenizer.unknown_rate:.2%} unknown, {tokenizer.tokens_per_s:,.0f} tokens/s, "
        f"longest {tokenizer.longest_token!r} ({tokenizer.longest_token_bytes:,} bytes)",
        "blocks": str(data.folder),
    }
    for label, text in facts.items():
        console.print(f"{label:<12} {text}", highlight=False, soft_wrap=True)


def print_check(report: CheckReport, console: Console) -> None:
    """Print the findings of a corpus check, which writes no files."""
    _print_files(report.files, report.passed_over, report.rejects, report.documents, console)
    for reject in report.first_rejects:
        location = Path(reject["file"]).name + (f":{reject['line']}" if reject["line"] else "")
        console.print(f"  {location}  {reject['reason']}  {reject['excerpt']}", highlight=False, soft_wrap=True)
    if report.num_repeated:
        share = report.num_repeated / report.rows_kept
        console.print(
            f"repetition   {report.num_repeated:,} of the rows kept repeat an earlier text, {share:.0%} of them",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"{report.rows_kept:,} of {report.rows_read:,} rows would be kept, {report.num_text_bytes:,} bytes of text, "
        f"{report.num_held_out:,} of the rows held out; nothing was written",
        highlight=False,
        soft_wrap=True,
    )


def _print_files(
    files: Sequence[FileReport],
    passed_over: Sequence[PassedOver],
    rejects: Mapping[str, int],
    documents: str,
    console: Console,
) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("file", "format", "encoding", "text"):
        table.add_column(name, overflow="fold")
    for name in ("rows read", "kept", "rejected"):
        table.add_column(name, justify="right")
    for file in files[:_SHOWN_FILES]:
        kind = file.format if file.compression is None else f"{file.format}, {file.compression}"
        text = documents if file.format == "txt" else file.text_column or ""
        table.add_row(Path(file.path).name, kind, file.encoding or "", text, *_counts([file]))
    if len(files) > _SHOWN_FILES:
        others = files[_SHOWN_FILES:]
        table.add_row(f"and {len(others):,} more", "", "", "", *_counts(others))
    if len(files) > 1:
        table.add_row("together", "", "", "", *_counts(files), style="bold")
    console.print(table)
    rows_read = max(sum(file.rows_read for file in files), 1)
    for reason, count in sorted(rejects.items(), key=lambda item: (-item[1], item[0])):
        rows = "row" if count == 1 else "rows"
        console.print(f"rejected     {count:,} {rows}, {count / rows_read:.1%}: {reason}", highlight=False)
    for file in files[:_SHOWN_FILES]:
        for note in file.notes:
            console.print(f"note         {Path(file.path).name}: {note}", highlight=False, soft_wrap=True)
    for one in passed_over[:_SHOWN_FILES]:
        console.print(f"passed over  {Path(one.path).name}: {one.why}", highlight=False, soft_wrap=True)
    if len(passed_over) > _SHOWN_FILES:
        console.print(f"passed over  {len(passed_over) - _SHOWN_FILES:,} more, in manifest.json", highlight=False)


def _counts(files: Sequence[FileReport]) -> tuple[str, str, str]:
    """Rows read, kept and rejected."""
    sums = (sum(getattr(file, name) for file in files) for name in ("rows_read", "rows_kept", "rows_rejected"))
    read, kept, rejected = (f"{count:,}" for count in sums)
    return read, kept, rejected


def corpus_in_words(data: PreparedCorpus) -> str:
    """One line with the figures of the corpus."""
    manifest = data.manifest
    rejects = ", ".join(f"{count:,} {reason}" for reason, count in sorted(manifest.rejects.items()))
    rejected = f", {manifest.rows_rejected:,} rejected ({rejects})" if manifest.rows_rejected else ""
    of_answers = {
        name: "" if rows.num_answer_tokens is None else f" ({rows.num_answer_tokens:,} of answers)"
        for name, rows in manifest.rows.items()
    }
    long = _long_conversations(manifest)
    return (
        f"{manifest.rows_kept:,} of {manifest.rows_read:,} documents kept{rejected}; "
        f"{data.train.num_tokens:,} tokens{of_answers['train']} to train on, {data.holdout.num_tokens:,}"
        f"{of_answers['holdout']} held out, vocabulary {data.vocabulary.size:,}" + (f"; {long}" if long else "")
    )
