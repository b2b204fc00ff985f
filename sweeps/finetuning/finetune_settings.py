"""Settings of a fine-tuning, from a file or the command line; this module imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """What a fine-tuning is asked for. Several epochs, batch sizes, learning rates or seeds: every combination
    is trained."""

    label: str
    """Column of the classes."""
    purpose: str = ""
    """What it is to find out; stands in the report."""
    text: str | None = None
    """Column of the texts. None: told by its name."""
    epochs: tuple[float, ...] = (10.0,)
    batch_sizes: tuple[int, ...] = (32,)
    learning_rates: tuple[float, ...] = ()
    """Peaks of a linear schedule. None given: 5e-5 at a width of 768, and more for narrower models, in proportion."""
    seeds: tuple[int, ...] = (0,)
    """Of the head's first weights, the order of rows and dropout."""
    from_scratch: bool = False
    """Train the same model from random weights as well: what was pretraining worth?"""
    dropout: float = 0.1
    holdout: float = 0.2
    least_rows: int = 1
    """Classes of fewer rows are left out."""
    max_tokens: int | None = None
    """Texts are cut to so many tokens. None: to what the model takes."""
    micro_batch_size: int | None = None
    memory_bytes: int | None = None
    """For weights, gradients, optimizer state and activations. None: no limit but the machine's."""
