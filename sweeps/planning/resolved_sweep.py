"""A sweep file made whole, step by step: weights, tokens of epochs, tokens of stages, and fewer on a slow machine.

Every command does it here. `PreparedSweep` counts the rows of the prepared corpus. `ExpectedSweep` takes them from the
bytes of the text, before anything is prepared. A step is taken when it is first asked for, after those above it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from core.settings.run_config import RunConfig
from core.training.training_stage import Stage
from data_pipeline.preparation.corpus_check import BYTES_OF_TOKEN, check
from data_pipeline.schema.corpus_config import PackingConfig
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.token_blocks import PreparedCorpus
from sweeps.planning.first_checks import check_file
from sweeps.planning.preparation import prepare_with_progress
from sweeps.settings.stage_config import tokens_of
from sweeps.settings.sweep_config import SweepConfig


class TrainingRows(Protocol):
    """How much there is to train on."""

    @property
    def num_rows(self) -> int:
        """Rows of the training split."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens in them, without padding."""
        ...


class ResolvedSweep(ABC):
    """A sweep file and all that it leaves to be found out."""

    def __init__(self, asked: SweepConfig, results_folder: Path) -> None:
        """A file as it was read; nothing is done yet.

        Args:
            results_folder: Where earlier sweeps, prepared corpora and measurements of this machine are.
        """
        self._asked, self._results_folder = asked, results_folder

    @cached_property
    def begun(self) -> SweepConfig:
        """With the weights, shape and tokenizer of `start.weights_of`: enough for the corpus and for memory.

        Every command passes here first, so what each trial would find out too late is checked here.

        Raises:
            ResultsError, InputFault: As `beginning_with_weights` and `check_file`.
        """
        begun = self._asked
        if begun.start is not None and begun.start.weights_of is not None:
            # The files of models need torch, which takes seconds to import.
            from sweeps.planning.warm_start import beginning_with_weights

            begun = beginning_with_weights(begun, self._results_folder)
        check_file(begun)
        return begun

    @cached_property
    def in_tokens(self) -> SweepConfig:
        """Also with the tokens of `budget.epochs_per_trial`.

        Raises:
            InputFault: All trials together may not have that many.
        """
        sweep, epochs = self.begun, self.begun.budget.epochs_per_trial
        if epochs is None:
            return sweep
        tokens = max(1, round(epochs * self._rows(sweep.packing).num_tokens))
        return _with_tokens(sweep, tokens, f"{epochs:g} epochs", "budget.epochs_per_trial")

    @cached_property
    def counted(self) -> SweepConfig:
        """Also with the tokens of its stages: `budget.trial_tokens` is known.

        Raises:
            InputFault: All trials together may not have that many.
        """
        sweep = self.in_tokens
        if not sweep.stages:
            return sweep
        total = sum(map(self._tokens_of_stage, sweep.stage_runs()))
        return _with_tokens(sweep, total, "all stages", "the lengths of stages")

    def whole(self, cluster: Callable[[], Mapping[str, Any]] | None) -> tuple[SweepConfig, str]:
        """Also with the tokens that `budget.shorten_to` leaves on this machine, and a line that says so.

        Args:
            cluster: As `with_shortened_trials` takes it. None: measures nothing.
        """
        # It measures with torch, which takes seconds to import, and few commands come here.
        from sweeps.planning.shortened_budget import with_shortened_trials

        return with_shortened_trials(
            self.counted,
            cluster=cluster,
            vocabulary_size=self.vocabulary_size,
            results_folder=self._results_folder,
        )

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """Entries of the vocabulary."""

    @abstractmethod
    def _rows(self, packing: PackingConfig) -> TrainingRows:
        """The rows of the training split, packed so."""

    def _tokens_of_stage(self, run: RunConfig) -> int:
        if run.training.tokens is not None:
            return run.training.tokens
        rows = self._rows(self.in_tokens.packing_of(run))
        return tokens_of(run, num_rows=rows.num_rows, num_tokens=rows.num_tokens)


class PreparedSweep(ResolvedSweep):
    """With the prepared corpus, which is made where it is missing."""

    def __init__(
        self,
        asked: SweepConfig,
        results_folder: Path,
        console: Console,
        *,
        fetch: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """As `ResolvedSweep`; progress goes to the console.

        Args:
            fetch: As `prepare_with_progress` takes it.
        """
        super().__init__(asked, results_folder)
        self._console, self._fetch = console, fetch
        self._prepared: dict[PackingConfig, PreparedCorpus] = {}

    @property
    def data(self) -> PreparedCorpus:
        """The corpus in rows of the file.

        Raises:
            CorpusError: The corpus is missing, empty, or too much of it is rejected.
        """
        return self._data(self.begun.packing)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Each stage with its rows. Documents are tokenized once; each row length is another table of the same tokens.

        Raises:
            CorpusError: As for `data`.
        """
        sweep = self.in_tokens
        return tuple(Stage(run, self._data(sweep.packing_of(run))) for run in sweep.stage_runs())

    @property
    def vocabulary_size(self) -> int:
        """Entries that the tokenizer has."""
        return self.data.vocabulary.size

    def _rows(self, packing: PackingConfig) -> TrainingRows:
        return self._data(packing).train

    def _data(self, packing: PackingConfig) -> PreparedCorpus:
        if packing not in self._prepared:
            sweep = self.begun.model_copy(update={"packing": packing})
            self._prepared[packing] = prepare_with_progress(
                sweep, self._results_folder, self._console, fetch=self._fetch
            )
        return self._prepared[packing]


class ExpectedSweep(ResolvedSweep):
    """Before the corpus is prepared: tokens are about those of the text."""

    @cached_property
    def vocabulary_size(self) -> int:
        """Entries of a tokenizer that is there, else the most that it may learn.

        Raises:
            InputFault: The tokenizer cannot be read.
        """
        from sweeps.planning.warm_start import expected_vocabulary

        return expected_vocabulary(self.begun)

    def _rows(self, packing: PackingConfig) -> TrainingRows:
        return _ExpectedRows(math.ceil(self._num_tokens / packing.sequence_length), self._num_tokens)

    @cached_property
    def _num_tokens(self) -> int:
        corpus = self.begun.corpus
        return max(1, round(check(corpus).num_text_bytes * (1 - corpus.holdout) / BYTES_OF_TOKEN))


@dataclass(frozen=True)
class _ExpectedRows:
    num_rows: int
    num_tokens: int


def _with_tokens(sweep: SweepConfig, tokens: int, length: str, remedy: str) -> SweepConfig:
    budget = sweep.budget
    if budget.tokens is not None and budget.tokens < tokens:
        raise InputFault(
            f"budget.tokens={budget.tokens:,} is below the {tokens:,} tokens of {length}: no trial fits; raise it, or "
            f"lower {remedy}"
        )
    counted = budget.model_copy(update={"tokens_per_trial": tokens, "epochs_per_trial": None})
    return sweep.model_copy(update={"budget": counted})
