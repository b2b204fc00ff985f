"""Rejected rows: their location and the reason. Every row that is read is either kept or rejected."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError
from data_pipeline.schema.manifest import FileReport
from data_pipeline.schema.redaction import recorded_path


class Reason(StrEnum):
    """All reasons for rejecting a row. rejects.jsonl, manifests and tables contain these strings."""

    EMPTY_TEXT = "empty text"
    UNDECODABLE = "bytes that are not of the file's encoding"
    NUL = "NUL byte in the text"
    LONE_SURROGATE = "half a surrogate pair in the text"
    TOO_LONG = "row too long"
    MALFORMED_JSON = "malformed JSON"
    NESTED_TOO_DEEP = "JSON nested too deep"
    NOT_AN_OBJECT = "JSON that is not an object"
    DUPLICATE_KEY = "text key given twice"
    NO_TEXT_KEY = "no text key"
    NOT_TEXT = "text is not a string"
    WRONG_FIELD_COUNT = "other number of fields than the header"
    OPEN_QUOTE = "quote that is not closed"
    REPEATED_HEADER = "header repeated"
    NO_TURNS = "conversation without turns"
    MALFORMED_TURN = "turn without role or content"
    UNKNOWN_ROLE = "turn of an unknown role"
    EMPTY_TURN = "turn without text"
    TURN_ORDER = "turns do not alternate"
    NO_ANSWER = "conversation without an answer"
    MARK_IN_TURN = "token that begins or ends a turn inside one"
    NOT_OF_TEMPLATE = "conversation that the chat template refuses"
    NO_LABEL = "no label"
    FILE_REFUSED = "whole file refused"
    FILE_DAMAGED = "compressed file damaged from here on"


_EXCERPT_CHARACTERS = 80
_FILES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Reject:
    """One rejected row."""

    file: str
    line: int
    """First physical line of the row, from 1; row number in Parquet; 0 for a whole file."""
    reason: Reason
    excerpt: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", recorded_path(self.file))

    def as_json(self) -> dict[str, Any]:
        """The object written to rejects.jsonl."""
        return {"file": self.file, "line": self.line, "reason": self.reason.value, "excerpt": self.excerpt}


def excerpt_of(row: bytes | str) -> str:
    """The first characters of a row; unprintable ones are escaped."""
    if isinstance(row, bytes):
        row = row[: 4 * _EXCERPT_CHARACTERS].decode("utf-8", "backslashreplace")
    head = row[:_EXCERPT_CHARACTERS].encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in head)


def reject_table(rejects: Mapping[str, int], *, rows_read: int) -> str:
    """Table of rejected rows by reason, most frequent first, for a message."""
    lines = [f"{'rows':>12}  {'share':>6}  reason"]
    for reason, count in sorted(rejects.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"{count:>12,}  {count / max(rows_read, 1):>6.1%}  {reason}")
    return "\n".join(lines)


def check_files(files: Sequence[FileReport], corpus: CorpusConfig) -> None:
    """Refuse a corpus with damaged files, unless `damaged` keeps what is whole, or whose unreadable files hold a
    larger share of its bytes than `max_rejected` allows of its rows.

    A refused file counts as one reject for all its rows, so `check_rejects` alone could miss half of a corpus.

    Raises:
        CorpusError: Lists the files and the reasons.
    """
    damaged = [file for file in files if file.damage is not None]
    if damaged and corpus.damaged == "refuse":
        lines = [f"{file.path}: {file.damage}; {_rows_before(file)}" for file in damaged[:_FILES_SHOWN]]
        more = f"\nand {len(damaged) - _FILES_SHOWN} more" if len(damaged) > _FILES_SHOWN else ""
        raise CorpusError(
            f"{len(damaged)} of {len(files)} files are damaged, and rows behind the damage are lost. Download them "
            "again, or use the rows before it: corpus.damaged: keep_what_is_whole:\n" + "\n".join(lines) + more
        )
    refused = [file for file in files if file.refused is not None]
    num_bytes = sum(file.num_file_bytes for file in files)
    share = sum(file.num_file_bytes for file in refused) / max(num_bytes, 1)
    if refused and (share > corpus.max_rejected or len(refused) == len(files)):
        reasons = "\n".join(f"{file.path}: {file.refused}" for file in refused[:_FILES_SHOWN])
        more = f"\nand {len(refused) - _FILES_SHOWN} more" if len(refused) > _FILES_SHOWN else ""
        raise CorpusError(
            f"{len(refused)} of {len(files)} files cannot be read, {share:.1%} of the corpus by size; "
            f"corpus.max_rejected allows {corpus.max_rejected:.1%}. Repair these files, or name only readable ones as "
            f"corpus.path:\n{reasons}{more}"
        )


def _rows_before(file: FileReport) -> str:
    return f"{file.rows_kept:,} rows before it are whole, and an unknown number behind it is lost"


def check_rejects(rejects: Mapping[str, int], rows_read: int, corpus: CorpusConfig) -> None:
    """Refuse a corpus of which no row is kept, or a larger share is rejected than `max_rejected` allows.

    Raises:
        CorpusError: Contains a table of reasons.
    """
    num_rejected = sum(rejects.values())
    where = corpus.builtin or (corpus.path if isinstance(corpus.path, str) else ", ".join(corpus.path or ()))
    table = reject_table(rejects, rows_read=rows_read)
    if num_rejected == rows_read:
        raise CorpusError(
            f"no row of {where} can be used: {rows_read:,} rows read, none kept. Repair the corpus or check "
            "corpus.text, corpus.format and corpus.encoding." + (f"\n{table}" if rejects else "")
        )
    share = num_rejected / rows_read
    if share > corpus.max_rejected:
        enough = min(100, math.floor(share * 100) + 1)
        raise CorpusError(
            f"{num_rejected:,} of {rows_read:,} rows of {where} are rejected: {share:.1%}; corpus.max_rejected allows "
            f"{corpus.max_rejected:.1%}. Repair the corpus, or accept the rejects: corpus.max_rejected: {enough}%."
            f"\n{table}"
        )
