"""Settings of a fine-tuning, from a file or the command line; this module imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Settings of a fine-tuning. With several epochs, batch sizes, learning rates or seeds every combination is
    trained."""

    label: str
    """Column of the labels."""
    purpose: str = ""
    """Question that the fine-tuning answers; shown in the report."""
    text: str | None = None
    """Column of the texts. None: detected by name."""
    epochs: tuple[float, ...] = (10.0,)
    batch_sizes: tuple[int, ...] = (32,)
    learning_rates: tuple[float, ...] = ()
    """Peaks of a linear schedule. Empty: 5e-5 x 768 / width of the model."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the head's initial weights, the order of rows and dropout."""
    from_scratch: bool = False
    """Also train the same model from random weights, to show the gain from pretraining."""
    dropout: float = 0.1
    holdout: float = 0.2
    least_rows: int = 1
    """Minimum rows of a class; smaller classes are left out."""
    max_tokens: int | None = None
    """Texts are truncated to this many tokens. None: the model's maximum."""
    micro_batch_size: int | None = None
    memory_bytes: int | None = None
    """Memory limit for weights, gradients, optimizer state and activations. None: the machine's memory."""
