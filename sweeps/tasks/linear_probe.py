"""A linear probe: logistic regression on frozen features, fitted on some rows of a task and tested on the others."""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from core.models.language_model import LanguageModel
from core.models.text_features import features
from sweeps.tasks.labelled_tasks import TaskRows

_MOST_ITERATIONS = 1000


class TaskProbes:
    """The probes of all tasks of one run; a `Judge` of its evaluations (core/step/evaluation.py)."""

    def __init__(self, tasks: Sequence[TaskRows], *, sequence_length: int) -> None:
        """
        Args:
            sequence_length: Tokens in the rows of training, in which memory is counted.
        """
        # Before the run begins: importing scikit-learn takes a second, and memory that a kernel's limit would count.
        import sklearn.linear_model
        import sklearn.metrics  # noqa: F401

        self._tasks, self._sequence_length = tuple(tasks), sequence_length

    def metrics(self, model: LanguageModel, num_rows: int, listen: Callable[[], None]) -> dict[str, float]:
        """`task/NAME/accuracy`, its standard error, and `task/NAME/macro_f1` of each task; NaN where features are.

        Args:
            num_rows: Rows of training that a forward pass may hold.
            listen: Called before each pass; raises to stop the run.
        """
        found: dict[str, float] = {}
        for task in self._tasks:
            vectors = _features(model, task, self._texts_at_once(task, num_rows), listen)
            found |= {f"task/{task.name}/{what}": value for what, value in probe(vectors, task).items()}
        return found

    def rehearse(self, model: LanguageModel, num_rows: int) -> None:
        """The pass over the longest texts of each task."""
        for task in self._tasks:
            longest = sorted(task.tokens, key=len)[-self._texts_at_once(task, num_rows) :]
            features(model, longest, pooling="mean", pad_id=task.pad_id)

    def _texts_at_once(self, task: TaskRows, num_rows: int) -> int:
        """Texts of a task that need no more memory than rows of training."""
        longest = max(self._sequence_length, *map(len, task.tokens))
        return max(1, num_rows * self._sequence_length // longest)


def probe(vectors: NDArray[np.float32], task: TaskRows) -> dict[str, float]:
    """`accuracy`, `accuracy_standard_error` and `macro_f1` on the test rows of a probe fitted on the others.

    Features are standardized by the rows that fit; the penalty is scikit-learn's default (C = 1). The fit begins at
    zero and draws nothing, so equal features give equal figures.

    Args:
        vectors: (n, D) features of all rows of the task.

    Source: Alain and Bengio, arXiv:1610.01644 (linear probes of frozen features).
    """
    if not np.isfinite(vectors).all():
        return dict.fromkeys(("accuracy", "accuracy_standard_error", "macro_f1"), math.nan)
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from threadpoolctl import threadpool_limits

    fits, tests = ~task.is_test, task.is_test
    wide = vectors.astype(np.float64)
    mean, deviation = wide[fits].mean(axis=0), wide[fits].std(axis=0)
    rows = (wide - mean) / np.where(deviation > 0, deviation, 1.0)
    # One thread: sums in another order could move a row across the boundary between two classes.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # A fit that is cut off is the same one each time, and far along.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(max_iter=_MOST_ITERATIONS).fit(rows[fits], task.labels[fits])
        predicted = fitted.predict(rows[tests])
    truth = task.labels[tests]
    accuracy = float((predicted == truth).mean())
    return {
        "accuracy": accuracy,
        "accuracy_standard_error": math.sqrt(accuracy * (1 - accuracy) / len(truth)),
        "macro_f1": float(
            f1_score(truth, predicted, labels=np.arange(task.num_classes), average="macro", zero_division=0.0)
        ),
    }


def _features(model: LanguageModel, task: TaskRows, num_rows: int, listen: Callable[[], None]) -> NDArray[np.float32]:
    """(n, D) mean of the hidden states of each text. Texts of about equal length go together, with little padding."""
    order = sorted(range(len(task.tokens)), key=lambda row: len(task.tokens[row]))
    found = np.empty((len(order), model.tokens.embedding_dim), np.float32)
    for start in range(0, len(order), num_rows):
        listen()
        rows = order[start : start + num_rows]
        found[rows] = features(model, [task.tokens[row] for row in rows], pooling="mean", pad_id=task.pad_id)
    return found
