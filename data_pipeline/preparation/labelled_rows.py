"""Labelled texts: read from a table, split into training and holdout, encoded as rows. Equal texts share a split."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_pipeline.preparation.encode import frame, token_dtype
from data_pipeline.preparation.survey import hash_texts, holdout_threshold, is_below
from data_pipeline.reading.corpus import Corpus
from data_pipeline.reading.table_rows import ON_THE_COMMAND_LINE, SettingNames, columns_of, missing_column, table_rows
from data_pipeline.schema.corpus_config import CorpusError
from data_pipeline.schema.rejects import Reason, Reject, excerpt_of
from data_pipeline.tokens.token_blocks import PreparedCorpus, Rows, TokenBlocks
from data_pipeline.tokens.tokenizer import Vocabulary, panics_explained

_TEXTS_AT_ONCE = 1000
_SHOWN = 5


@dataclass
class LabelledTexts:
    """Texts and labels of a table, in its order."""

    label_column: str
    files: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of rows left out by class, for classes with too few rows."""

    @property
    def classes(self) -> tuple[str, ...]:
        """All distinct labels: numbers by value, then words alphabetically."""
        return tuple(sorted(set(self.labels), key=_order_of_class))

    @property
    def num_contradictory(self) -> int:
        """Rows whose text also occurs with another label; no model can predict all of them correctly."""
        seen: dict[str, set[str]] = {}
        for text, label in zip(self.texts, self.labels, strict=True):
            seen.setdefault(text, set()).add(label)
        return sum(len(seen[text]) > 1 for text in self.texts)


def _order_of_class(name: str) -> tuple[bool, int, str]:
    return (False, int(name), name) if name.isdecimal() else (True, 0, name)


def read_labelled(
    table: Corpus, label: str, *, least_rows: int = 1, names: SettingNames = ON_THE_COMMAND_LINE
) -> LabelledTexts:
    """All rows with a text and a label; labels are stripped of surrounding white space.

    Args:
        label: Column of the labels.
        least_rows: Classes with fewer rows are left out and counted in `left_out`.
        names: Names of the settings in error messages.

    Raises:
        CorpusError: No such column (with the nearest spelling), no valid row, fewer than two classes, or a class with
            a single row, which cannot be both trained on and held out.
    """
    for kind in table.files:
        if label not in kind.columns:
            option = names.label + names.before_value
            raise CorpusError(f"{kind.path} {missing_column(label, kind.columns, option=option)}")
        if label == kind.text_column:
            raise CorpusError(
                f"{kind.path}: column {label!r} is both the text and the label; name another column for the texts with "
                f"{names.text}, one of {', '.join(columns_of(table))}"
            )
    found = LabelledTexts(label)
    for row in table_rows(table, [label], on_reject=found.rejects.append):
        if row.cells[label]:
            found.files.append(row.file)
            found.lines.append(row.line)
            found.texts.append(row.text)
            found.labels.append(row.cells[label])
        else:
            found.rejects.append(Reject(row.file, row.line, Reason.NO_LABEL, excerpt_of(row.text)))
    found = _without_rare(found, least_rows)
    _check_classes(found, table, names)
    return found


def _without_rare(found: LabelledTexts, least_rows: int) -> LabelledTexts:
    counts = Counter(found.labels)
    rare = Counter({name: count for name, count in counts.items() if count < least_rows})
    kept = [index for index, name in enumerate(found.labels) if name not in rare]
    return replace(
        found,
        files=[found.files[index] for index in kept],
        lines=[found.lines[index] for index in kept],
        texts=[found.texts[index] for index in kept],
        labels=[found.labels[index] for index in kept],
        left_out=rare,
    )


def _check_classes(found: LabelledTexts, table: Corpus, names: SettingNames) -> None:
    where = ", ".join(kind.path for kind in table.files[:_SHOWN])
    counts = Counter(found.labels)
    if not counts:
        reasons = Counter(reject.reason.value for reject in found.rejects)
        why = "; ".join(f"{count:,} times {reason}" for reason, count in reasons.most_common(_SHOWN))
        why = why or f"all {found.left_out.total():,} are of classes below {names.least_rows}"
        raise CorpusError(f"{where} has no row with a text and a label in {found.label_column!r}: {why}")
    if len(counts) == 1:
        raise CorpusError(
            f"{where}: the column {found.label_column!r} has one class only, {next(iter(counts))!r} in all "
            f"{len(found.labels):,} rows; a classifier needs two or more: name another column, one of "
            f"{', '.join(name for name in columns_of(table) if name != found.label_column)}"
        )
    single = sorted(name for name, count in counts.items() if count == 1)
    if single:
        shown = ", ".join(map(repr, single[:_SHOWN])) + (", .." if len(single) > _SHOWN else "")
        have = "have" if len(single) > 1 else "has"
        raise CorpusError(
            f"{where}: {len(single)} of {len(counts)} classes in {found.label_column!r} {have} "
            f"a single row ({shown}), which cannot be both trained on and held out; leave such classes out with "
            f"{names.least_rows}{names.before_value}2 (or more), or give them more rows"
        )


def hold_out(
    texts: Sequence[str], labels: Sequence[str], share: float, *, names: SettingNames = ON_THE_COMMAND_LINE
) -> NDArray[np.bool_]:
    """(n,) True for held-out rows, chosen by a hash of the text like in a corpus, so equal texts share a split.

    If a whole class falls into one split, one of its texts moves: the lowest hash is held out, or the highest is
    trained on. A text that no other class has moves first, because a shared one would move for the other class too.

    Args:
        share: Share of the texts to hold out, in [0, 1].

    Raises:
        CorpusError: A class has only one distinct text, or other classes need its texts in the same split.
    """
    hashes, _ = hash_texts(list(texts))
    side = dict(zip(texts, is_below(hashes[:, 0], holdout_threshold(share)).tolist(), strict=True))
    order = dict(zip(texts, (tuple(pair) for pair in hashes.tolist()), strict=True))
    of_class: dict[str, list[str]] = {}
    classes: dict[str, set[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        of_class.setdefault(label, []).append(text)
        classes.setdefault(text, set()).add(label)
    # Rarest class first: it has the fewest texts to move.
    for label in sorted(of_class, key=lambda name: (len(set(of_class[name])), name)):
        own = sorted(set(of_class[label]), key=order.__getitem__)
        movable = [text for text in own if len(classes[text]) == 1] or own
        if not any(side[text] for text in own):
            side[movable[0]] = True
        if all(side[text] for text in own):
            side[movable[-1]] = False
    one_sided = [name for name, own in of_class.items() if len({side[text] for text in own}) == 1]
    if one_sided:
        own = of_class[one_sided[0]]
        raise CorpusError(
            f"the {len(own)} rows of class {one_sided[0]!r} have too few different texts ({len(set(own))}) to be both "
            "trained on and held out, because equal texts share a split; leave such classes out with "
            f"{names.least_rows}{names.before_value}{len(own) + 1}, or give them more texts"
        )
    return np.array([side[text] for text in texts], np.bool_)


class LabelledRows(TokenBlocks):
    """In-memory rows of one text and one label each, with the interface of `TokenBlocks`."""

    def __init__(
        self, tokens: NDArray[Any], lengths: NDArray[np.int32], labels: NDArray[np.int64], num_bytes: int
    ) -> None:
        """
        Args:
            tokens: (n, T), padded.
            lengths: (n,) number of tokens of each row, padding not counted.
            labels: (n,) class numbers.
            num_bytes: UTF-8 bytes of all texts.
        """
        self._tokens, self._lengths, self._labels, self._num_bytes = tokens, lengths, labels, num_bytes

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    @property
    def num_rows(self) -> int:
        return len(self._tokens)

    @property
    def sequence_length(self) -> int:
        return int(self._tokens.shape[1])

    @property
    def num_tokens(self) -> int:
        return int(self._lengths.sum())

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) class number of each row."""
        return self._labels

    def rows(self, row_numbers: NDArray[np.int64]) -> Rows:
        chosen = np.asarray(row_numbers, np.int64)
        return Rows(self._tokens[chosen], self._lengths[chosen], None, labels=self._labels[chosen])


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as token ids, each `<s> .. </s>`, truncated to the maximum row length."""

    tokens: tuple[NDArray[Any], ...]
    num_cut: int
    """Number of truncated texts."""


def encode_texts(texts: Iterable[str], tokenizer: Tokenizer, vocabulary: Vocabulary, *, longest: int) -> EncodedTexts:
    """Texts as token ids. A text that is too long keeps its first tokens and still ends in `</s>`.

    Args:
        longest: Maximum tokens of a row, special tokens included.
    """
    pieces: list[NDArray[Any]] = []
    num_cut = 0
    batch: list[str] = []

    def add() -> None:
        nonlocal num_cut
        with panics_explained():
            ids = [found.ids for found in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        framed = frame(ids, vocabulary, token_dtype(vocabulary.size))
        for row in np.split(framed.tokens, np.cumsum(framed.lengths)[:-1]):
            if len(row) > longest:
                num_cut += 1
                row = row[:longest].copy()
                row[-1] = vocabulary.eos_id
            pieces.append(row)

    for text in texts:
        batch.append(text)
        if len(batch) == _TEXTS_AT_ONCE:
            add()
            batch.clear()
    if batch:
        add()
    return EncodedTexts(tuple(pieces), num_cut)


def padded(rows: Sequence[NDArray[Any]], *, pad_id: int, length: int | None = None) -> NDArray[Any]:
    """(n, T) rows padded to equal length T: `length`, or that of the longest row."""
    longest = length or max(map(len, rows))
    tokens = np.full((len(rows), longest), pad_id, rows[0].dtype)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    return tokens


def labelled_corpus(
    found: LabelledTexts,
    encoded: EncodedTexts,
    is_held_out: NDArray[np.bool_],
    vocabulary: Vocabulary,
    *,
    tokenizer_path: Path,
    fingerprint: str,
) -> PreparedCorpus:
    """The training rows and the holdout as a corpus; class number c is the c-th of `found.classes`.

    Its manifest is None: rows in memory have no files and no blocks.
    """
    number = {name: index for index, name in enumerate(found.classes)}
    labels = np.array([number[name] for name in found.labels], np.int64)
    num_bytes = np.array([len(text.encode()) for text in found.texts], np.int64)
    length = max(map(len, encoded.tokens))

    def side(chosen: NDArray[np.bool_]) -> LabelledRows:
        rows = [encoded.tokens[index] for index in np.flatnonzero(chosen)]
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = padded(rows, pad_id=vocabulary.pad_id, length=length)
        return LabelledRows(tokens, lengths, labels[chosen], int(num_bytes[chosen].sum()))

    return PreparedCorpus(
        folder=tokenizer_path.parent,
        manifest=cast(Any, None),
        vocabulary=vocabulary,
        train=side(~is_held_out),
        holdout=side(is_held_out),
        tokenizer_path=tokenizer_path,
        fingerprint=fingerprint,
    )
