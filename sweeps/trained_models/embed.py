"""Feature vectors of the texts of a table, streamed to Parquet: memory does not grow with the table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from core.models.given_class import GivenModel
from core.models.text_features import Pooling, features, ids_of, why_not_pooled, width_of
from data_pipeline.files.own_files import clear
from data_pipeline.preparation.labelled_rows import encode_texts
from data_pipeline.reading.table_rows import TableRow, columns_of, missing_column, open_table, table_rows
from data_pipeline.schema.rejects import Reject
from data_pipeline.schema.user_errors import InputFault
from sweeps.trained_models.trained_model import TrainedModel

ROW, FEATURES = "row", "features"
_BATCHES_SORTED_TOGETHER = 16
"""Batches whose texts are sorted together by length: rows of a batch then need little padding."""


@dataclass(frozen=True)
class Embedded:
    """Counts of an embedding, and the width of its vectors."""

    num_rows: int
    num_rejected: int
    num_cut: int
    """Texts longer than the model accepts; their vectors cover their beginnings."""
    width: int


def embed(
    trained: TrainedModel,
    table: str,
    target: Path,
    *,
    text: str | None = None,
    keep: Sequence[str] = (),
    pooling: Pooling = "mean",
    batch_size: int = 32,
    max_tokens: int | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Embedded:
    """Write columns `row` (from 0, in the table's order, rejected rows counted), the kept ones, and `features`.

    Args:
        table: File, folder or glob.
        keep: Columns to copy, as text.
        batch_size: Texts per forward pass; changes speed and memory only.
        max_tokens: Length that texts are cut to. None: the length that the model accepts.
        on_rows: Gets the number of rows written so far, after each row group.

    Raises:
        InputFault: A fault in an argument or the table; an unfinished file is removed.
    """
    reason = why_not_pooled(trained.model, pooling)
    if reason is not None:
        raise InputFault(f"--pool {pooling}: {reason}")
    if max_tokens is not None and not 3 <= max_tokens <= trained.config.num_positions:
        raise InputFault(f"--max-tokens {max_tokens}: the model takes 3 to {trained.config.num_positions}")
    found = open_table(table, text=text)
    for name in keep:
        if name not in columns_of(found):
            raise InputFault(f"{table} {missing_column(name, columns_of(found), option='--keep ')}")
        if name in (ROW, FEATURES):
            raise InputFault(
                f"--keep {name}: the output has its own column of this name; rename the column of the table"
            )
    rejects: list[Reject] = []
    width = width_of(trained.model)
    if isinstance(trained.model, GivenModel):
        batch_size = 1  # A class need not know padding, and a text alone has none.
    schema = pa.schema(
        [(ROW, pa.int64()), *((name, pa.string()) for name in keep), (FEATURES, pa.list_(pa.float32(), width))]
    )
    partial = target.with_name(f".{target.name}.partial")
    num_rows = num_cut = 0
    try:
        clear(partial)
        with pq.ParquetWriter(partial, schema) as writer:
            rows = table_rows(found, keep, on_reject=rejects.append)
            while stretch := list(islice(rows, batch_size * _BATCHES_SORTED_TOGETHER)):
                vectors, cut = _vectors(trained, stretch, pooling, batch_size, max_tokens)
                columns = [
                    pa.array([row.number for row in stretch]),
                    *_kept(stretch, keep),
                    vectors.cast(schema[-1].type),
                ]
                writer.write_table(pa.table(columns, schema=schema))
                num_rows, num_cut = num_rows + len(stretch), num_cut + cut
                on_rows(num_rows)
        if num_rows == 0:
            why = f", first {rejects[0].file}:{rejects[0].line}: {rejects[0].reason.value}" if rejects else ""
            raise InputFault(f"{table} has no row with a usable text: {len(rejects):,} rejected{why}")
        partial.rename(target)
    except OSError as error:
        raise InputFault(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return Embedded(num_rows, len(rejects), num_cut, width)


def _kept(stretch: Sequence[TableRow], keep: Sequence[str]) -> Iterator[pa.Array]:
    for name in keep:
        yield pa.array([row.cells[name] for row in stretch], pa.string())


def _vectors(
    trained: TrainedModel, stretch: Sequence[TableRow], pooling: Pooling, batch_size: int, max_tokens: int | None
) -> tuple[pa.Array, int]:
    vocabulary = changed(trained.vocabulary, size=ids_of(trained.model))
    longest = max_tokens or trained.config.num_positions
    encoded = encode_texts((row.text for row in stretch), trained.tokenizer, vocabulary, longest=longest)
    order = sorted(range(len(stretch)), key=lambda index: len(encoded.tokens[index]))
    found = torch.empty(len(stretch), width_of(trained.model))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        rows = [encoded.tokens[index] for index in indices]
        found[indices] = torch.from_numpy(features(trained.model, rows, pooling=pooling, pad_id=vocabulary.pad_id))
    return pa.FixedSizeListArray.from_arrays(pa.array(found.flatten().numpy()), found.shape[1]), encoded.num_cut
