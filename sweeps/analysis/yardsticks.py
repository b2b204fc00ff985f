"""The winner's loss beside those of tables of token counts, and whether it has learnt anything yet."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat

LEAST_LEARNT_NATS = 0.5
"""A winner that is less than this below the table of token frequencies has learnt nothing yet."""


class Yardsticks(BaseModel):
    """Losses of tables of token counts on the holdout, in nats per token; see core/step/token_tables.py."""

    model_config = ConfigDict(frozen=True)

    unigram_nats: FiniteFloat
    """Of a table of token frequencies."""
    bigram_nats: FiniteFloat | None
    """Of a table of pairs of tokens, interpolated; None for masked LM."""
    num_counted: int
    """Training tokens that were counted."""

    def in_words(self, loss: float | None = None) -> str:
        """The losses of the tables, and the distance of a loss from them, in one line."""
        tables = {"token frequencies": self.unigram_nats, "pairs of tokens": self.bigram_nats}
        known = {name: nats for name, nats in tables.items() if nats is not None}
        words = ", ".join(f"{nats:.4f} nats by {name}" for name, nats in known.items())
        if loss is None:
            return words
        distances = [
            f"{abs(loss - nats):.4f} {'below' if loss < nats else 'above'} that of {name}"
            for name, nats in known.items()
        ]
        return f"{words}; the winner is {' and '.join(distances)}"

    def nothing_learnt(self, loss: float) -> str | None:
        """A warning about a winner of this loss; None if it has learnt something."""
        below = self.unigram_nats - loss
        if below >= LEAST_LEARNT_NATS:
            return None
        where = f"{below:.4f} nats below" if below > 0 else f"{-below:.4f} nats above"
        return (
            f"nothing yet: the winner is {where} a table of token frequencies, and {LEAST_LEARNT_NATS} is the least "
            "that counts. Train longer: raise budget.tokens_per_trial, or lower training.batch_size for more steps."
        )


def yardsticks_of(summary: Mapping[str, Any]) -> Yardsticks | None:
    """The yardsticks of a sweep; None if its summary has none, as those of earlier versions."""
    found = summary.get("yardsticks")
    return None if found is None else Yardsticks.model_validate(found)


def figures(yardsticks: Yardsticks | None, loss: float | None) -> dict[str, Any] | None:
    """The entry of summary.json.

    Args:
        loss: Of the winner; None without one.
    """
    if yardsticks is None:
        return None
    of_winner = {} if loss is None else {
        "winner_below_unigram_nats": yardsticks.unigram_nats - loss,
        "winner_has_learnt": yardsticks.nothing_learnt(loss) is None,
    }  # fmt: skip
    return yardsticks.model_dump() | of_winner
