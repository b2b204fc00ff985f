"""Tell the format of a text file by its first characters and its name: JSON, a table, or plain text.

Plain text is no fallback: a file that says JSON or a table, by its bytes or by its name, is read as that or refused.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from data_pipeline.formats.json_arrays import array_elements
from data_pipeline.reading.table_detection import table_facts
from data_pipeline.reading.text_columns import choose_column
from data_pipeline.schema.corpus_config import CorpusConfig

Named = Literal["jsonl", "json", "csv", "parquet", "arrow"]

_SNIFFED_ROWS = 60
_MOST_KEYS = 1000
# Possessive quantifiers: with backtracking, white space without an end would take quadratic time.
_OBJECT = re.compile(r'\s*+\{\s*+(?:"[^"\n]*+"\s*+:|\}\s*+[{,\n])')
_SUFFIXES: dict[str, Named] = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "jsonlines": "jsonl",
    "json": "json",
    "csv": "csv",
    "tsv": "csv",
    "psv": "csv",
    "parquet": "parquet",
    "pq": "parquet",
    "arrow": "arrow",
    "feather": "arrow",
}
_COMPRESSED = ("gz", "gzip", "bz2", "zst", "zstd", "xz", "lz4")
_IN_WORDS = {"jsonl": "JSONL", "json": "JSON", "csv": "a table", "parquet": "Parquet", "arrow": "Arrow"}
_AS_TEXT = "set corpus.format: txt to read its lines as text"


def named_format(path: str) -> Named | None:
    """The format that the name of a file says; None if it says none, or plain text."""
    parts = re.split(r"[?#]", path, maxsplit=1)[0].rsplit("/", 1)[-1].lower().split(".")
    while len(parts) > 1 and parts[-1] in _COMPRESSED:
        parts.pop()
    return _SUFFIXES.get(parts[-1]) if len(parts) > 1 else None


def text_facts(head: str, corpus: CorpusConfig, named: Named | None, *, is_whole: bool) -> dict[str, Any]:
    """Format, columns and line ends of a text file, as fields of a FileKind.

    Args:
        head: Its first characters.
        named: The format that its name says.
        is_whole: The head is the whole file.
    """
    has_cr_lines = "\n" not in head and "\r" in head
    lines = head.split("\r") if has_cr_lines else [line.rstrip("\r") for line in head.split("\n")]
    if not is_whole and len(lines) > 1:
        lines.pop()  # The last line may be incomplete.
    facts: dict[str, Any] = {"has_cr_lines": has_cr_lines}
    wanted = corpus.format
    if wanted == "txt":
        return facts | {"format": "txt"}
    if wanted in ("json", "jsonl", "auto"):
        found = _json_facts(head, lines, corpus, named, is_whole=is_whole)
        if found is not None:
            return facts | found
    if wanted in ("csv", "tsv", "auto"):
        table = table_facts(lines, corpus, is_said=wanted != "auto" or named == "csv", is_whole=is_whole)
        if table is not None:
            return facts | table
    return facts | {"format": "txt", "refused": _why_not_text(lines, corpus, named)}


def first_with_column(chunks: Iterator[str], corpus: CorpusConfig) -> dict[str, Any] | None:
    """Columns of a JSON file by all its rows; None if none of them has the wanted column, or one of a known name.

    Args:
        chunks: The whole file.
    """
    keys: dict[str, None] = {}
    for element in array_elements(chunks, longest=corpus.longest_row_bytes):
        row = None if element.is_too_long else _object_or_none(element.text)
        if row is None or not any(key not in keys for key in row):
            continue
        keys |= dict.fromkeys(islice(row, _MOST_KEYS))
        column, refused = choose_column(tuple(keys), corpus.text, [])
        if refused is None:
            return {"columns": tuple(keys), "text_column": column, "refused": None}
        if len(keys) > _MOST_KEYS:
            return None
    return None


def _json_facts(
    head: str, lines: list[str], corpus: CorpusConfig, named: Named | None, *, is_whole: bool
) -> dict[str, Any] | None:
    """Facts of a JSON file; None if it is none."""
    wanted = corpus.format
    filled = [line for line in lines if line.strip()][:_SNIFFED_ROWS]
    if wanted == "auto" and named != "json" and len(filled) > 1 and all(map(_is_array_of_scalars, filled)):
        # Each line is a row that is no object.
        return {"format": "jsonl", "text_column": corpus.text or "text"}
    if wanted in ("json", "auto") and corpus.text is None and _is_array_of_strings(head):
        return {"format": "json"}
    if wanted == "json" or (wanted == "auto" and _is_json_array(head)):
        return {"format": "json"} | _object_facts(_first_elements(head), corpus)
    objects = [parsed for parsed in map(_object_or_none, filled) if parsed is not None]
    if wanted == "jsonl" or (wanted == "auto" and filled and _looks_like_jsonl(filled, len(objects))):
        return {"format": "jsonl"} | _object_facts(objects, corpus)
    if _OBJECT.match(head):
        # Objects over several lines, several on a line, or with commas between the lines.
        elements = _first_elements(head)
        return {"format": "json" if elements else "jsonl"} | _objects_or_damage(elements, head, corpus)
    if is_whole and _is_list(head):
        return _empty_or_odd_array(head, corpus)
    if named in ("json", "jsonl") and not filled:
        return {"format": named}
    if named in ("json", "jsonl") and any(line.lstrip()[0] in "[{" for line in filled):
        elements = _first_elements(head) if named == "json" else objects
        return {"format": named} | _objects_or_damage(elements, head, corpus)
    return None


def _objects_or_damage(objects: list[dict[str, Any]], head: str, corpus: CorpusConfig) -> dict[str, Any]:
    if objects:
        return _object_facts(objects, corpus)
    try:
        json.loads(head)
        place = "no value of it is an object"
    except json.JSONDecodeError as fault:
        place = f"{fault.msg} at line {fault.lineno}, column {fault.colno}"
    except (ValueError, RecursionError) as fault:
        place = str(fault)
    return {"refused": f"it is damaged JSON, none of whose first rows is whole: {place}; write it again"}


def _empty_or_odd_array(head: str, corpus: CorpusConfig) -> dict[str, Any]:
    values = json.loads(head)
    if not values:
        return {"format": "json", "refused": "it is an empty JSON array and holds no row; leave it out of corpus.path"}
    return {"format": "json"} | (_object_facts([row for row in values if isinstance(row, dict)], corpus))


def _why_not_text(lines: list[str], corpus: CorpusConfig, named: Named | None) -> str | None:
    """Reason why a file is not read as plain text; None if it is."""
    if not any(line.strip() for line in lines):
        return None
    if corpus.format == "auto" and named == "csv":
        return (
            "its name says a table, and no delimiter gives its lines the same number of fields below a header; set "
            f"corpus.delimiter or corpus.header, or {_AS_TEXT}"
        )
    if corpus.format in ("parquet", "arrow") or named is not None:
        says = "corpus.format says" if corpus.format in ("parquet", "arrow") else "its name says"
        what = _IN_WORDS[corpus.format if corpus.format in _IN_WORDS else str(named)]
        return f"{says} {what}, and it does not begin like that; download or write it again, or {_AS_TEXT}"
    if corpus.text is not None:
        return (
            f"corpus.text names the column {corpus.text!r}, and it is plain text without columns; remove corpus.text, "
            "or say how the table is written with corpus.delimiter and corpus.header"
        )
    return None


def _is_list(head: str) -> bool:
    try:
        return head.lstrip().startswith("[") and isinstance(json.loads(head), list)
    except (ValueError, RecursionError):
        return False


def _is_array_of_scalars(line: str) -> bool:
    if not line.lstrip().startswith("["):
        return False
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, list) and not any(isinstance(one, dict) for one in value)


def _is_json_array(head: str) -> bool:
    stripped = head.lstrip()
    if not stripped.startswith("["):
        return False
    inside = stripped[1:].lstrip()
    return inside.startswith("{") and re.match(r'\{\s*("|\})', inside) is not None


def _is_array_of_strings(head: str) -> bool:
    """True if the array begins with a complete string followed by a comma or the end of the array."""
    start = re.match(r'\s*\[\s*(?=")', head)
    if start is None:
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(head, start.end())
    except ValueError:
        return False
    return re.match(r"\s*[,\]]", head[end:]) is not None


def _first_elements(head: str) -> list[dict[str, Any]]:
    """The first complete objects of an array."""
    elements = array_elements(iter([head]), longest=len(head))
    objects = (parsed for element in elements if (parsed := _object_or_none(element.text)) is not None)
    return list(islice(objects, _SNIFFED_ROWS))


def _object_facts(objects: list[dict[str, Any]], corpus: CorpusConfig) -> dict[str, Any]:
    keys = tuple(dict.fromkeys(key for row in objects for key in row))
    column, refused = choose_column(keys, corpus.text, [key for key in keys if _is_text(objects, key)])
    return {"columns": keys, "text_column": column, "refused": refused}


def _looks_like_jsonl(filled: list[str], num_objects: int) -> bool:
    # Half is enough: malformed lines in the other half become rejects.
    return 2 * num_objects >= len(filled) or (filled[0].lstrip().startswith('{"') and num_objects > 0)


def _object_or_none(line: str) -> dict[str, Any] | None:
    if not line.lstrip().startswith("{"):
        return None
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _is_text(objects: list[dict[str, Any]], key: str) -> bool:
    values = [row[key] for row in objects if row.get(key) is not None]
    return bool(values) and all(isinstance(value, str) for value in values)
