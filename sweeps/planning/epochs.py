"""Converts a budget in epochs to tokens: exact with a prepared corpus, estimated without one."""

from data_pipeline.preparation.corpus_check import check
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.token_blocks import PreparedCorpus
from sweeps.settings.sweep_config import SweepConfig

_BYTES_OF_TOKEN = 3.5
"""Typical for byte-level BPE with some thousand entries: 2.3 for Chinese to 4.6 for English."""


def with_tokens_of_epochs(sweep: SweepConfig, data: PreparedCorpus) -> SweepConfig:
    """The sweep with the tokens of `budget.epochs_per_trial`; unchanged without them.

    Raises:
        InputFault: One trial would exceed budget.tokens.
    """
    epochs = sweep.budget.epochs_per_trial
    return sweep if epochs is None else _with_tokens(sweep, round(epochs * data.train.num_tokens))


def with_expected_tokens(sweep: SweepConfig) -> SweepConfig:
    """The sweep with estimated tokens, from the bytes of an unprepared corpus; for `plan`."""
    epochs = sweep.budget.epochs_per_trial
    if epochs is None:
        return sweep
    num_bytes = check(sweep.corpus).num_text_bytes * (1 - sweep.corpus.holdout)
    return _with_tokens(sweep, max(1, round(epochs * num_bytes / _BYTES_OF_TOKEN)))


def _with_tokens(sweep: SweepConfig, tokens: int) -> SweepConfig:
    budget = sweep.budget
    if budget.tokens is not None and budget.tokens < tokens:
        raise InputFault(
            f"budget.tokens={budget.tokens:,} is below the {tokens:,} tokens of {budget.epochs_per_trial:g} epochs: no "
            "trial fits; raise it, or lower budget.epochs_per_trial"
        )
    counted = budget.model_copy(update={"tokens_per_trial": tokens, "epochs_per_trial": None})
    return sweep.model_copy(update={"budget": counted})
