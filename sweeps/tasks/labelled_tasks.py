"""Labelled rows of the tasks of a sweep: read by the reader of `finetune --classify`, split once for all trials."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_pipeline.preparation.labelled_rows import LabelledTexts, encode_texts, hold_out, read_labelled
from data_pipeline.preparation.survey import hash_texts
from data_pipeline.reading.table_rows import SettingNames, open_table
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.tokenizer import Vocabulary
from sweeps.settings.metric_config import TaskConfig

_FEWEST_OF_A_CLASS = 2
"""Texts of each class that a choice of rows keeps: one to fit, one to test."""


@dataclass(frozen=True)
class TaskTexts:
    """The rows of one task as they were read: texts, classes, and the side of each."""

    config: TaskConfig
    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    """(n,) class numbers."""
    is_test: NDArray[np.bool_]
    """(n,) True for rows that the probe is tested on."""
    classes: tuple[str, ...]
    num_read: int
    """Rows of the files."""
    num_rejected: int
    """Rows without a usable text or a label."""
    num_rare: int
    """Rows of classes with fewer than `least_rows`."""
    num_in_both: int
    """Rows of test_path whose text also fits the probe."""

    @property
    def commonest_accuracy(self) -> float:
        """Accuracy on the test rows of always naming the commonest class of the others: the figure to beat."""
        fitted = np.bincount(self.labels[~self.is_test], minlength=len(self.classes))
        return float((self.labels[self.is_test] == fitted.argmax()).mean())

    def in_words(self) -> str:
        """The accounts of the task, in one line."""
        left_out = {
            "rejected": self.num_rejected,
            "of classes that are too small": self.num_rare,
            "not needed": self.num_read - self.num_rejected - self.num_rare - len(self.texts),
        }
        others = "".join(f", {count:,} {why}" for why, count in left_out.items() if count)
        both = (
            f"; {self.num_in_both:,} test rows have a text that also fits the linear probe" if self.num_in_both else ""
        )
        return (
            f"{self.config.name}: {len(self.texts):,} of {self.num_read:,} rows used{others}; "
            f"{int((~self.is_test).sum()):,} fit a linear probe and {int(self.is_test.sum()):,} test it, "
            f"{len(self.classes)} classes; always the commonest class: accuracy {self.commonest_accuracy:.4f}{both}"
        )


@dataclass(frozen=True)
class TaskRows:
    """The rows of one task in tokens, as workers take them."""

    name: str
    tokens: tuple[NDArray[Any], ...]
    """`<s> .. </s>` of each text, cut to the longest row."""
    labels: NDArray[np.int64]
    is_test: NDArray[np.bool_]
    num_classes: int
    pad_id: int


def read_tasks(tasks: Sequence[TaskConfig]) -> tuple[TaskTexts, ...]:
    """The rows of all tasks.

    Raises:
        InputFault: Files or columns are missing, or a class cannot be both fitted and tested; the message lists the
            faults of all tasks.
    """
    found, faults = [], []
    for index, task in enumerate(tasks):
        try:
            found.append(_read_task(task, index))
        except InputFault as fault:
            faults.append(f"task {task.name}: {fault}")
    if faults:
        raise InputFault("\n".join(faults))
    return tuple(found)


def encode_task(found: TaskTexts, tokenizer: Tokenizer, vocabulary: Vocabulary, *, sequence_length: int) -> TaskRows:
    """The rows of a task in tokens.

    Args:
        sequence_length: Longest row where the task sets none, special tokens included.
    """
    longest = found.config.max_tokens or sequence_length
    encoded = encode_texts(found.texts, tokenizer, vocabulary, longest=longest)
    return TaskRows(
        name=found.config.name,
        tokens=encoded.tokens,
        labels=found.labels,
        is_test=found.is_test,
        num_classes=len(found.classes),
        pad_id=vocabulary.pad_id,
    )


def fingerprint_of(found: Sequence[TaskTexts]) -> str:
    """Hash of everything in the files that decides the metrics of the tasks; empty without tasks."""
    if not found:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for task in found:
        digest.update(hash_texts(list(task.texts))[0].tobytes() + task.labels.tobytes() + task.is_test.tobytes())
        digest.update("\0".join(task.classes).encode())
    return digest.hexdigest()


def figures_of(found: Sequence[TaskTexts]) -> dict[str, dict[str, Any]]:
    """Figures of each task, by name, for summary.json."""
    return {
        task.config.name: {
            "rows": len(task.texts),
            "rows_to_test": int(task.is_test.sum()),
            "rows_read": task.num_read,
            "rows_rejected": task.num_rejected,
            "classes": list(task.classes),
            "accuracy_of_the_commonest": task.commonest_accuracy,
        }
        for task in found
    }


def _read_task(task: TaskConfig, index: int) -> TaskTexts:
    place = f"evaluation.tasks.{index}"
    names = SettingNames(
        text=f"{place}.text",
        label=f"{place}.label",
        least_rows=f"{place}.least_rows",
        max_tokens=f"{place}.max_tokens",
        before_value=": ",
    )
    read = [_rows_of(path, task, names) for path in (task.path, task.test_path) if path is not None]
    classes = read[0].classes
    if task.test_path is not None:
        unknown = sorted(set(read[1].classes) - set(classes))
        if unknown:
            raise InputFault(
                f"{place}.test_path: the class {unknown[0]!r} ({len(unknown)} in all) is not in {task.path}, so no "
                "linear probe can learn it; add rows of it there, or remove it from the test rows"
            )
    kept = [_chosen(one, task.most_rows) for one in read]
    texts = [one.texts[row] for one, rows in zip(read, kept, strict=True) for row in rows]
    labels = [one.labels[row] for one, rows in zip(read, kept, strict=True) for row in rows]
    if task.test_path is None:
        is_test = hold_out(texts, labels, task.holdout, names=names)
    else:
        is_test = np.repeat([False, True], [len(rows) for rows in kept])
    fitting = {text for text, tests in zip(texts, is_test, strict=True) if not tests}
    number = {name: index for index, name in enumerate(classes)}
    return TaskTexts(
        config=task,
        texts=tuple(texts),
        labels=np.array([number[label] for label in labels], np.int64),
        is_test=is_test,
        classes=classes,
        num_read=sum(len(one.texts) + len(one.rejects) + one.left_out.total() for one in read),
        num_rejected=sum(len(one.rejects) for one in read),
        num_rare=sum(one.left_out.total() for one in read),
        num_in_both=sum(tests and text in fitting for text, tests in zip(texts, is_test, strict=True)),
    )


def _rows_of(path: str, task: TaskConfig, names: SettingNames) -> LabelledTexts:
    return read_labelled(
        open_table(path, text=task.text, names=names), task.label, least_rows=task.least_rows, names=names
    )


def _chosen(found: LabelledTexts, most: int) -> list[int]:
    """Rows that are used, in the order of the file: all, or of each class its share, chosen by a hash of the texts."""
    if len(found.texts) <= most:
        return list(range(len(found.texts)))
    hashes = [tuple(pair) for pair in hash_texts(found.texts)[0].tolist()]
    of_class: dict[str, list[int]] = {}
    for row in sorted(range(len(found.texts)), key=lambda row: (hashes[row][::-1], row)):
        of_class.setdefault(found.labels[row], []).append(row)
    order = sorted((key, row) for rows in of_class.values() for key, row in _by_share(rows, found.texts))
    return sorted(row for _, row in order[:most])


def _by_share(rows: Sequence[int], texts: Sequence[str]) -> Iterator[tuple[float, int]]:
    """Each row of a class with the share of the class before it; -1 for its first different texts, which are kept."""
    seen: set[str] = set()
    for place, row in enumerate(rows):
        is_needed = texts[row] not in seen and len(seen) < _FEWEST_OF_A_CLASS
        seen.add(texts[row])
        yield (-1.0 if is_needed else (place + 0.5) / len(rows)), row
