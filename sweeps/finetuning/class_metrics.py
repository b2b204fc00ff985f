"""Classification metrics on held-out rows: accuracy with its interval, F1, confusions, majority-class baseline."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Z_95 = 1.959964
"""Standard deviations on either side of the mean that contain 95 % of a normal distribution."""


@dataclass(frozen=True)
class ClassScore:
    """One class on the holdout."""

    name: str
    num_trained: int
    """Training rows of the class."""
    num_held_out: int
    precision: float
    """Share of the rows predicted as this class that belong to it; 0 without predictions."""
    recall: float
    """Share of the rows of this class that are predicted as it."""
    f1: float
    mistaken_for: str
    """Most frequent wrong prediction for rows of this class; empty without errors."""


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one classifier on all held-out rows."""

    accuracy: float
    macro_f1: float
    """Unweighted mean of F1 over the classes."""
    num_rows: int
    classes: tuple[ClassScore, ...]
    confusions: NDArray[np.int64]
    """(C, C): number of rows of class i that are predicted as class j."""

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy (Wilson 1927)."""
        n, p, z = self.num_rows, self.accuracy, _Z_95
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return middle - half, middle + half


def measure(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], trained: NDArray[np.int64], names: Sequence[str]
) -> ClassMetrics:
    """Metrics of predictions on the holdout.

    Args:
        labels: (n,) true classes.
        predicted: (n,) predicted classes.
        trained: Labels of the training rows.
        names: Names of the classes.
    """
    # Imported here, because it changes the environment of the process.
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    numbers = np.arange(len(names))
    precision, recall, f1, held_out = precision_recall_fscore_support(
        labels, predicted, labels=numbers, zero_division=0.0
    )
    confusions = confusion_matrix(labels, predicted, labels=numbers).astype(np.int64)
    counts = Counter(trained.tolist())
    wrong = confusions - np.diag(np.diag(confusions))
    scores = tuple(
        ClassScore(
            name=name,
            num_trained=counts[number],
            num_held_out=int(held_out[number]),
            precision=float(precision[number]),
            recall=float(recall[number]),
            f1=float(f1[number]),
            mistaken_for=names[int(wrong[number].argmax())] if wrong[number].any() else "",
        )
        for number, name in enumerate(names)
    )
    return ClassMetrics(float((labels == predicted).mean()), float(f1.mean()), len(labels), scores, confusions)


def always_the_commonest(
    labels: NDArray[np.int64], trained: NDArray[np.int64], names: Sequence[str]
) -> tuple[str, ClassMetrics]:
    """Name and metrics of always predicting the most frequent class of the training rows: the baseline to beat."""
    commonest = int(np.bincount(trained, minlength=len(names)).argmax())
    return names[commonest], measure(labels, np.full_like(labels, commonest), trained, names)
