"""Pickles that create a file when something unpickles them, and Arrow files that carry them in every place."""

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OF_RAY = "ray.data.arrow_pickled_object"
"""The extension type that importing ray.data registers: `to_pylist` unpickles its values."""
TEXTS = [f"text number {n}" for n in range(8)]


class Canary:
    """Unpickled, it creates `fired`."""

    def __init__(self, fired: Path) -> None:
        self.fired = fired

    def __reduce__(self) -> tuple[type[open], tuple[str, str]]:  # type: ignore[valid-type]
        return open, (str(self.fired), "w")

    def pickled(self) -> bytes:
        """The pickle."""
        return pickle.dumps(self)


def extended(field: pa.Field, name: str = OF_RAY) -> pa.Field:
    """A field as files describe one of an extension type. Arrow makes the type of it where `name` is registered."""
    return field.with_metadata({"ARROW:extension:name": name, "ARROW:extension:metadata": ""})


def places(fired: Path, name: str = OF_RAY) -> dict[str, tuple[pa.Field, pa.Array]]:
    """A column for each place of a schema where an extension type may stand; its values are canaries."""
    num_rows = len(TEXTS)
    values = pa.array([Canary(fired).pickled()] * num_rows, pa.large_binary())
    offsets = pa.array(range(num_rows + 1), pa.int32())
    inner = extended(pa.field("x", pa.large_binary()), name)
    struct = pa.StructArray.from_arrays([values], fields=[inner])
    keys = pa.array(TEXTS)
    entry = extended(pa.field("value", pa.large_binary()), name)
    indices = pa.array(range(num_rows), pa.int32())
    columns: dict[str, pa.Array] = {
        "struct": struct,
        "list": pa.ListArray.from_arrays(offsets, values, type=pa.list_(inner)),
        "large list": pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), values, type=pa.large_list(inner)),
        "fixed list": pa.FixedSizeListArray.from_arrays(values, type=pa.list_(inner, 1)),
        "list of structs": pa.ListArray.from_arrays(offsets, struct),
        "map": pa.MapArray.from_arrays(offsets, keys, values, type=pa.map_(pa.string(), entry)),
    }
    found = {place: (pa.field("o", array.type), array) for place, array in columns.items()}
    top = extended(pa.field("o", pa.large_binary()), name)
    encoded = pa.DictionaryArray.from_arrays(indices, values)
    return found | {
        "column": (top, values),
        "dictionary": (extended(pa.field("o", encoded.type), name), encoded),
    }


def parquet_with(path: Path, field: pa.Field, array: pa.Array, *, beside: str = "text") -> Path:
    """A Parquet file with this column beside one of texts."""
    schema = pa.schema([pa.field(beside, pa.string()), field])
    pq.write_table(pa.Table.from_arrays([pa.array(TEXTS), array], schema=schema), path)
    return path
