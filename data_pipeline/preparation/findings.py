"""Findings about kept texts that reject none of them: tags of HTML, replaced and unusual characters."""

import re
from collections import Counter
from collections.abc import Sequence

from data_pipeline.reading.file_formats import FileKind

_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9:-]{0,30}(?:\s[^<>]{0,1000})?/?>")
_UNUSUAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\ufffe\uffff]")
_REPLACED = "\ufffd"
_FEWEST_TAGGED = 0.05


def findings_in(texts: Sequence[str]) -> Counter[str]:
    """Number of texts with tags, replaced characters and unusual characters."""
    return Counter(
        tagged=sum("<" in text and _TAG.search(text) is not None for text in texts),
        replaced=sum(_REPLACED in text for text in texts),
        unusual=sum(_UNUSUAL.search(text) is not None for text in texts),
    )


def notes_on(file: FileKind, counts: Counter[str]) -> tuple[str, ...]:
    """The findings of one file in words.

    Args:
        counts: Of `findings_in`, and the rows kept.
    """
    notes = []
    if file.encoding.is_guess and file.refused is None:
        notes.append(f"{file.encoding.name}, {file.encoding.note}; corpus.encoding says it outright")
    if file.format == "txt" and counts["tagged"] > _FEWEST_TAGGED * max(counts["kept"], 1):
        notes.append(f"{counts['tagged'] / counts['kept']:.0%} of the documents hold tags of HTML or XML")
    if counts["replaced"]:
        notes.append(f"{counts['replaced']:,} rows hold characters that a program before has replaced (U+FFFD)")
    if counts["unusual"]:
        notes.append(f"{counts['unusual']:,} rows hold control characters or private ones")
    return tuple(notes)
