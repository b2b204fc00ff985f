"""Process all parcels of a corpus, as Ray Data tasks or in this process."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa

from data_pipeline.reading.corpus import Corpus
from data_pipeline.reading.pieces import Piece, describe, pieces_of, rebuild
from data_pipeline.schema.corpus_config import CorpusError
from data_pipeline.schema.user_errors import InputFault

_PARCELS_OF_A_UNIT = 16
_FAULT = "fault"
"""Key of a fault of the input that ended the work on a parcel."""

ParcelWork = Callable[[str, list[Piece]], dict[str, Any]]


RunParcels = Callable[[Corpus, ParcelWork], Iterator[dict[str, Any]]]
"""Runs a function on all parcels: `for_each_parcel` on a cluster, `for_each_parcel_here` in this process."""


def for_each_parcel(corpus: Corpus, work: ParcelWork) -> Iterator[dict[str, Any]]:
    """Results of `work(name, pieces)` for all parcels, in order of completion.

    Sorting by name restores the order of the corpus. One or two tasks cut files into parcels, and one task per core
    processes them; Ray Data bounds the parcels that wait in the object store.

    Args:
        work: Returns a JSON-compatible dict; its optional key "blobs" maps names to bytes.

    Raises:
        CorpusError: In the words of an InputFault that the work raised.
    """
    # Ray takes seconds to import, and commands that read in this process need none of it.
    import ray.data
    from ray.data import DataContext, ExecutionResources, TaskPoolStrategy

    units = [{"unit": number, "files": json.dumps(files)} for number, files in enumerate(_units(corpus))]
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = corpus.parcel_bytes
    context.op_resource_reservation_enabled = False
    # Without this limit, cutting runs ahead until the object store is full.
    num_cores: float = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    waiting = int(2 * num_cores) + 4
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=waiting * corpus.parcel_bytes
    )
    # Local paths may not exist on other nodes, so cutting stays on this node; the work runs on any node.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    cut: Any = partial(_cut, corpus=corpus)
    do: Any = partial(_work, work=work)
    with _quiet("ray.data", logging.WARNING), DataContext.current(context):
        results = (
            ray.data.from_items(units, override_num_blocks=len(units))
            # Cutting needs little CPU time; it must not occupy a core.
            .map_batches(
                cut,
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=0,
                compute=TaskPoolStrategy(size=min(2, len(units))),
                label_selector=here,
            )
            .map_batches(do, batch_size=1, batch_format="pyarrow", num_cpus=1)
        )
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            assert isinstance(batch, pa.Table)
            for row in batch.to_pylist():
                result = json.loads(row["result"])
                if _FAULT in result:
                    raise CorpusError(result[_FAULT])
                yield result | {"blobs": {blob["name"]: blob["data"] for blob in row["blobs"]}}


@contextmanager
def _quiet(name: str, level: int) -> Iterator[None]:
    """Suppress messages below a level; pretune prints its own progress."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def for_each_parcel_here(corpus: Corpus, work: ParcelWork) -> Iterator[dict[str, Any]]:
    """Like `for_each_parcel`, but sequential in this process: no Ray, no start-up time."""
    for unit, files in enumerate(_units(corpus)):
        for number, pieces in enumerate(_parcels(corpus, files)):
            name = _parcel_name(unit, number)
            yield {"name": name, "blobs": {}} | work(name, pieces)


def _parcel_name(unit: int, number: int) -> str:
    return f"{unit:06d}-{number:06d}"


def _units(corpus: Corpus) -> list[list[int]]:
    """File numbers grouped by cutting task: small files share one, because each task costs milliseconds."""
    units: list[list[int]] = []
    size = 0
    for number, file in enumerate(corpus.files):
        if not units or size >= corpus.parcel_bytes * _PARCELS_OF_A_UNIT:
            units.append([])
            size = 0
        units[-1].append(number)
        size += file.num_plain_bytes
    return units


def _cut(batch: Any, corpus: Corpus) -> Iterator[Any]:
    unit = batch.column("unit")[0].as_py()
    files = json.loads(batch.column("files")[0].as_py())
    number = 0
    try:
        for number, pieces in enumerate(_parcels(corpus, files)):
            yield _row(
                _parcel_name(unit, number),
                [describe(piece) for piece in pieces],
                b"".join(piece.data for piece in pieces),
            )
    except InputFault as fault:
        yield _row(_parcel_name(unit, number + 1), {_FAULT: str(fault)}, b"")


def _row(name: str, pieces: Any, data: bytes) -> Any:
    return pa.table({"name": [name], "pieces": [json.dumps(pieces)], "data": pa.array([data], pa.large_binary())})


def _parcels(corpus: Corpus, files: Sequence[int]) -> Iterator[list[Piece]]:
    parcel: list[Piece] = []
    size = 0
    for number in files:
        for piece in pieces_of(corpus.files[number], corpus.config, file=number, piece_bytes=corpus.parcel_bytes):
            parcel.append(piece)
            size += len(piece.data)
            if size >= corpus.parcel_bytes:
                yield parcel
                parcel, size = [], 0
    if parcel:
        yield parcel


def _work(batch: Any, work: ParcelWork) -> Any:
    name = batch.column("name")[0].as_py()
    data = memoryview(batch.column("data")[0].as_buffer())
    pieces, start = [], 0
    described = json.loads(batch.column("pieces")[0].as_py())
    # The pieces, or the fault of a file that could not be cut into them.
    for description in described if isinstance(described, list) else ():
        stop = start + description["num_bytes"]
        pieces.append(rebuild(description, bytes(data[start:stop])))
        start = stop
    try:
        result = work(name, pieces) if isinstance(described, list) else dict(described)
    except InputFault as fault:
        # Ray would hand it over as an error of its own, with a traceback as its words.
        result = {_FAULT: str(fault)}
    blobs = [{"name": key, "data": value} for key, value in result.pop("blobs", {}).items()]
    blob_type = pa.list_(pa.struct([("name", pa.string()), ("data", pa.large_binary())]))
    return pa.table(
        {
            "result": [json.dumps({"name": name} | result)],
            "blobs": pa.array([blobs], blob_type),
        }
    )
