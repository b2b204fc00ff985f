"""Settings of training: batches, length, learning-rate schedule, optimizer, precision, LoRA."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, model_validator

from data_pipeline.schema.settings import Count, Settings, Share


def _absolute(path: str) -> str:
    # Resolve against the user's working directory; workers have others.
    return str(Path(path).expanduser().absolute())


def _joined(targets: Any) -> Any:
    # One string, so that a search can choose between several targets.
    names = targets.split(",") if isinstance(targets, str) else targets
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return ",".join(dict.fromkeys(name.strip() for name in names))
    return targets


class LoraConfig(Settings):
    """Low-rank adaptation (LoRA, arXiv:2106.09685): the weights W stay frozen, and selected matrices are trained as
    W + alpha / rank x B A with two thin matrices A and B."""

    rank: Count = 8
    """Rows of A, and columns of B."""
    alpha: PositiveFloat = 16.0
    """Over the rank, the factor on what is learnt."""
    targets: Annotated[str, BeforeValidator(_joined)] = "all-linear"
    """Matrices that are adapted: all-linear, attention, feed-forward, or names as transformers has them, such as
    [q_proj, v_proj]. Several names are also one text, for a search: "q_proj,v_proj"."""
    recompute_feed_forward: bool = True
    """Compute the inside of feed-forwards again in the backward pass: about half the memory, for less time than frozen
    weights save."""

    @property
    def scale(self) -> float:
        """Factor alpha / rank on the product B A."""
        return self.alpha / self.rank


class TrainingConfig(Settings):
    """Batches, length, schedule, optimizer and precision of one training run."""

    batch_size: Count = 64
    """Sequences per optimizer step over all workers (global)."""
    micro_batch_size: Count | Literal["auto"] = "auto"
    """Sequences per forward/backward on one worker. Changes speed and memory, never what is learnt."""
    tokens: Count | None = None
    """Tokens of training. A sweep says it as budget.tokens_per_trial."""
    epochs: PositiveFloat | None = None
    """Passes over the training rows; instead of tokens."""

    initial_weights: Annotated[str, AfterValidator(_absolute)] | None = None
    """Folder of a model to begin with, such as the best/ of a sweep or a trial's checkpoint: the next stage of a
    training, with longer rows for instance. Every worker reads it. None: weights are drawn at random."""
    lora: LoraConfig | None = None
    """Train low-rank adapters of the initial weights, and not the weights. None: all weights are trained."""

    learning_rate: PositiveFloat = 5e-4
    """Peak of the schedule."""
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """wsd: warm-up, stable, 1-sqrt cooldown (arXiv:2405.18392)."""
    warmup: Share = 0.02
    """Share of the tokens over which the learning rate rises."""
    cooldown: Share = 0.15
    """wsd: share of the tokens over which the learning rate falls to zero."""
    floor: Share = 0.0
    """cosine, linear: share of the peak that is left at the end."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """On matrices only."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    beta2_half_life_tokens: Count | None = None
    """Half-life of the second moment in tokens; instead of beta2, so that it holds for every batch size."""
    epsilon: PositiveFloat = 1e-8
    clip: PositiveFloat | None = 1.0
    """Largest global gradient norm. None: no clipping."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the hardware computes it natively, else fp32."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    on_oom: Literal["shrink", "stop"] = "shrink"
    """shrink: go on with a smaller micro-batch, which changes nothing in what is learnt. stop: the run ends as
    infeasible, so that a micro-batch that is swept is judged as it is."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial weights, the order of rows and the masks."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        faults = []
        if self.tokens is not None and self.epochs is not None:
            faults.append(f"tokens={self.tokens} and epochs={self.epochs} are both set; remove one of them")
        if self.warmup + (self.cooldown if self.schedule == "wsd" else 0) > 1:
            faults.append(
                f"warmup={self.warmup} and cooldown={self.cooldown} overlap; lower them so that their sum is at most 1"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self
