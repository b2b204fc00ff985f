"""Arrow schemas of files from others, read without the extension types that they name.

An extension type is a class that some library registered in this process. Arrow calls it while it reads a schema, and
again for every value; `ray.data.arrow_pickled_object`, which importing ray.data registers, unpickles the values. A
schema is therefore judged by its bytes, in which the name of each extension type stands as metadata of a field. The
answer is the same whether a library has registered the type or not.
"""

from collections.abc import Iterator

import pyarrow as pa

_MARK = b"ARROW:extension:name"
_INERT_MARK = b"ARROW-extension-name"
"""As long as the mark, so that a schema stays well-formed; Arrow sees plain metadata in it."""
_DEEPEST = 64


def inert_schema(message: bytes) -> pa.Schema:
    """The schema in an IPC message, with the storage type in place of each extension type.

    Raises:
        pa.ArrowInvalid: The message is malformed.
    """
    return pa.ipc.read_schema(pa.py_buffer(inert(message)))


def inert(message: bytes) -> bytes:
    """An IPC message of the same length in which Arrow recognizes no extension type."""
    return message.replace(_MARK, _INERT_MARK)


def extension_types(schema: pa.Schema) -> tuple[str, ...]:
    """All extension types of a schema, nested ones too, as `column.field (name of the type)`.

    Args:
        schema: From `inert_schema`, or one that Arrow itself has read.

    Raises:
        pa.ArrowInvalid: A column is nested deeper than Arrow's own messages may be.
    """
    return tuple(found for field in schema for found in _in_field(field, field.name, 0))


def _in_field(field: pa.Field, path: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise pa.ArrowInvalid(f"column {path.partition('.')[0]} is nested deeper than {_DEEPEST} levels")
    name = (field.metadata or {}).get(_INERT_MARK)
    if name is not None:
        yield f"{path} ({name.decode(errors='backslashreplace')})"
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType):
        yield f"{path} ({kind.extension_name})"
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        yield from _in_field(pa.field("values", kind.value_type), f"{path}.values", depth + 1)
    for number in range(kind.num_fields):
        inner = kind.field(number)
        yield from _in_field(inner, f"{path}.{inner.name}", depth + 1)
