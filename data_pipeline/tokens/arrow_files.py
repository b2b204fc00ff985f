"""Arrow files of our own, mapped into memory only if their schema is exactly the expected one.

They lie in folders that several people share, so a file may have been put there by another. Its schema is judged before
Arrow makes anything of it (data_pipeline/files/arrow_extensions.py).
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.files.arrow_extensions import inert
from data_pipeline.schema.user_errors import InputFault

_MAGIC = b"ARROW1"
_TAIL_BYTES = 4 + len(_MAGIC)
"""Length of the footer, and the magic bytes."""


class DamagedBlockError(InputFault):
    """A file of a prepared corpus is missing, truncated, altered, or not what preparation writes."""


def arrow_bytes(batch: pa.RecordBatch) -> bytes:
    """One record batch as the bytes of an Arrow file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def map_arrow(path: Path, *schemas: pa.Schema) -> pa.RecordBatch:
    """The record batch of an Arrow file, memory-mapped.

    Args:
        schemas: Schemas that the file may have.

    Raises:
        DamagedBlockError: It has another schema, or offsets that lead outside its values.
    """
    try:
        # np.memmap closes its file after mapping; pa.memory_map would keep a descriptor for each of many blocks.
        mapped = pa.py_buffer(np.memmap(path, np.uint8, mode="r"))
        found = _schema(mapped)
        if any(found.equals(schema, check_metadata=True) for schema in schemas):
            batch = pa.ipc.open_file(pa.BufferReader(mapped)).get_batch(0)
            batch.validate(full=True)
            return batch
    except (ValueError, OSError, pa.ArrowException) as cause:
        raise DamagedBlockError(
            f"{path} cannot be read as an Arrow file: {cause}; delete {path.parent} and prepare again"
        ) from cause
    raise DamagedBlockError(
        f"{path} has the columns {_in_words(found)} and should have {' or '.join(map(_in_words, schemas))}; it was not "
        f"written by preparation: delete {path.parent} and prepare again"
    )


def _schema(mapped: pa.Buffer) -> pa.Schema:
    """The schema of an Arrow file, with the storage type in place of each extension type."""
    tail = mapped[max(0, mapped.size - _TAIL_BYTES) :].to_pybytes()
    num_bytes = int.from_bytes(tail[:4], "little")
    end = mapped.size - _TAIL_BYTES
    if not tail.endswith(_MAGIC) or num_bytes > end:
        raise pa.ArrowInvalid("it does not end like one")
    # A footer alone is a file that Arrow opens: the record batches that it names are not looked at.
    footer = inert(mapped[end - num_bytes : end].to_pybytes())
    return pa.ipc.open_file(pa.BufferReader(_MAGIC + b"\0\0" + footer + tail)).schema


def _in_words(schema: pa.Schema) -> str:
    """A schema on one line, with the metadata that names an extension type."""
    return ", ".join(str(schema.to_string(show_field_metadata=True)).split("\n"))
