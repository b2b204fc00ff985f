"""Settings of training: batches, length, learning-rate schedule, optimizer, precision, LoRA."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, model_validator

from data_pipeline.schema.settings import Count, Settings, Share, younger


def _absolute(path: str) -> str:
    # Resolve against the user's working directory; workers have others.
    return str(Path(path).expanduser().absolute())


def _joined(targets: Any) -> Any:
    # One string, so that a search can choose between several targets.
    names = targets.split(",") if isinstance(targets, str) else targets
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return ",".join(dict.fromkeys(name.strip() for name in names))
    return targets


WITHOUT_BASE = (
    "training.lora trains adapters of an existing model; give one as training.initial_weights (its folder) "
    "or start.weights_of, or remove training.lora"
)


class LoraConfig(Settings):
    """Low-rank adaptation (LoRA, arXiv:2106.09685): the weights W stay frozen, and selected matrices are trained as
    W + alpha / rank x B A with two thin matrices A and B."""

    rank: Count = 8
    """Rows of A and columns of B; at most the smaller side of each adapted matrix. Trainable parameters grow in
    proportion. 4 to 64 are usual."""
    alpha: PositiveFloat = 16.0
    """Strength of the adapters: their product is multiplied by alpha / rank. Twice the rank is usual."""
    targets: Annotated[str, BeforeValidator(_joined), Field(examples=["[q_proj, v_proj]"])] = "all-linear"
    """Matrices that are adapted: all-linear, attention, feed-forward, or names as transformers has them, such as
    [q_proj, v_proj]. Several names are also one text, for a search: "q_proj,v_proj"."""
    recompute_feed_forward: bool = True
    """true: the backward pass computes the inside of feed-forwards again. That takes about half the memory, and less
    time than frozen weights save. false: the activations are kept."""

    @property
    def scale(self) -> float:
        """Factor alpha / rank on the product B A."""
        return self.alpha / self.rank


WITH_LORA = (
    "training.optimizer=muon changes whole matrices, and training.lora trains only thin factors of them; use "
    "training.optimizer: adamw, or remove training.lora"
)


WITH_MUP = (
    "model.parametrization=mup scales weights that begin at random and the learning rates of whole matrices; with "
    "training.{} use model.parametrization: standard"
)


class MuonConfig(Settings):
    """Muon (https://kellerjordan.github.io/posts/muon, arXiv:2502.16982): the update of a matrix is its momentum with
    all singular values set to about one. For optimizer: muon."""

    learning_rate: PositiveFloat | None = None
    """Highest learning rate of Muon's matrices, in AdamW's unit: an update of a matrix has 0.2 x the rate as its root
    mean square, about that of AdamW (arXiv:2502.16982). null: training.learning_rate, so that one swept rate serves
    both."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Decoupled weight decay of Muon's matrices: each step shrinks them by learning rate x weight_decay. null:
    training.weight_decay."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the running mean of gradients, per optimizer step. The mean reaches over about 1 / (1 - momentum) steps.
    0.95 is usual."""
    nesterov: bool = True
    """true: the update looks one step ahead, from the momentum towards the new gradient (Nesterov). false: it is the
    momentum alone."""
    iterations: Annotated[int, Field(ge=1, le=20)] = 5
    """Newton-Schulz iterations of each update, from 1 to 20. Five bring most singular values between 0.7 and 1.2; each
    costs three matrix products."""


class BatchScheduleConfig(Settings):
    """Batch size that grows while a model trains: small batches early, when gradients agree, and large ones later
    (arXiv:1711.00489, arXiv:1812.06162)."""

    double_at: Annotated[tuple[Share, ...], Field(min_length=1, max_length=20)]
    """Shares of the tokens at which the batch size doubles, ascending, each between 0 and 1."""

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        shares = list(self.double_at)
        if shares != sorted(set(shares)) or shares[0] == 0 or shares[-1] == 1:
            raise ValueError(
                f"double_at={shares} is not ascending between 0 and 1; write each share once, as [30%, 60%]"
            )
        return self


class TrainingConfig(Settings):
    """Batches, length, schedule, optimizer and precision of one training run."""

    batch_size: Count = 64
    """Sequences in each optimizer step, over all workers together; at least one for each worker. Small batches train
    small models well if the learning rate and beta2 fit them (arXiv:2507.07101)."""
    batch_schedule: Annotated[BatchScheduleConfig | None, younger(None)] = None
    """Growth of the batch size, which batch_size begins. The schedule of the learning rate and settings in tokens
    follow the tokens as before. null: one batch size."""
    micro_batch_size: Count | Literal["auto"] = "auto"
    """Sequences in each forward and backward pass of one worker. It changes speed and memory, never what is learnt.
    auto: the largest power of two that fits in memory and holds at most about 8,192 tokens."""
    tokens: Count | None = None
    """Tokens of training, as 20M; padding does not count. A sweep file has budget.tokens_per_trial instead."""
    epochs: PositiveFloat | None = None
    """Passes over the training rows, instead of tokens. A sweep file has budget.epochs_per_trial instead."""

    initial_weights: Annotated[str, AfterValidator(_absolute)] | None = None
    """Folder of a model whose weights the training begins with, such as the best/ of a sweep or a trial's checkpoint.
    All nodes must be able to read it. null: weights are drawn at random."""
    lora: LoraConfig | None = None
    """Low-rank adapters: they are trained, and the initial weights stay as they are. null: all weights are trained."""

    optimizer: Annotated[Literal["adamw", "muon"], younger("adamw")] = "adamw"
    """Rule of the updates. adamw: AdamW everywhere (arXiv:1711.05101). muon: Muon on the matrices of the layers, set by
    training.muon, and AdamW on embeddings, heads, routers, norms and biases."""
    muon: Annotated[MuonConfig, younger(MuonConfig())] = MuonConfig()
    """Muon; for optimizer: muon."""
    learning_rate: PositiveFloat = 5e-4
    """Highest learning rate of the schedule. The setting that a loss depends on most; small models take more
    than large ones. Sweep it first, on a logarithmic scale, as {log_uniform: [1e-4, 1e-2]}."""
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """Course of the learning rate after the warm-up. wsd: constant, then a cooldown that falls with 1 - sqrt
    (arXiv:2405.18392). cosine, linear: falls to the floor along that curve. constant: stays at the peak."""
    warmup: Share = 0.02
    """Share of the tokens over which the learning rate rises from zero to its peak. 1 % to 5 % is usual. warmup and
    cooldown together are at most 1."""
    warmup_tokens: Annotated[Count | None, younger(None)] = None
    """Tokens of the warm-up, as 2M, instead of warmup: the same at every length. null: warmup."""
    warmup_steps: Annotated[Count | None, younger(None)] = None
    """Optimizer steps of the warm-up, instead of warmup: as many at every length and batch size. null: warmup."""
    cooldown: Share = 0.15
    """wsd only: share of the tokens, at the end, over which the learning rate falls to zero. 10 % to 20 % reaches the
    loss of a cosine schedule (arXiv:2405.18392)."""
    floor: Share = 0.0
    """cosine and linear only: learning rate at the end, as a share of the peak. 0 to 0.1 is usual."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of AdamW (arXiv:1711.05101): each step shrinks matrices by learning rate x weight_decay.
    Biases and norms are not decayed. 0.01 (RoBERTa) to 0.1 (GPT-3) is usual."""
    weight_decay_timescale: Annotated[PositiveFloat | None, younger(None)] = None
    """Share of the training after which old updates weigh 1/e in the weights, instead of weight_decay: batch tokens /
    (learning rate x weight_decay x tokens of the training). It carries over to another batch, rate or length, where
    weight_decay itself does not (arXiv:2405.13698, arXiv:2505.13738). 0.1 to 1 is usual; 2 is
    twice the training. null: weight_decay."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Adam's decay of the running mean of gradients, per optimizer step. The mean reaches over about 1 / (1 - beta1)
    steps. 0.9 is usual (arXiv:1412.6980) and seldom worth a sweep."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    """Adam's decay of the running mean of squared gradients, per optimizer step. The mean reaches over about
    1 / (1 - beta2) steps. 0.95 (GPT-3) to 0.999 (arXiv:1412.6980) are usual; RoBERTa takes 0.98 (arXiv:1907.11692). The
    smaller the batch, the nearer to 1."""
    beta2_half_life_tokens: Count | None = None
    """Tokens after which a squared gradient weighs half; instead of beta2. It holds for every batch size, where beta2
    itself does not (arXiv:2507.07101). null: beta2 is as given."""
    epsilon: PositiveFloat = 1e-8
    """Number added to Adam's denominator, against division by zero. 1e-8 is usual (arXiv:1412.6980); RoBERTa takes
    1e-6. It hardly changes a loss."""
    clip: PositiveFloat | None = 1.0
    """Largest Euclidean norm of all gradients together; larger ones are scaled down to it. 1.0 is usual. null: no
    clipping."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of matrix products; weights are always fp32. fp16 is for GPUs without bf16. auto: bf16 where the
    hardware computes it natively, else fp32."""
    activation_checkpointing: bool = False
    """true: the backward pass computes activations again. That takes less memory, and about a third more time."""
    compile: bool = False
    """true: torch.compile translates the model to faster kernels. The first step of each shape takes up to minutes, so
    it pays for long trainings and seldom for a sweep of short trials."""
    on_oom: Literal["shrink", "stop"] = "shrink"
    """Reaction of a run that ran out of memory. shrink: it continues with a smaller micro-batch, which changes nothing
    in what is learnt. stop: it ends as infeasible, so that a swept micro-batch is judged as it is."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial weights, the order of rows, the masks and dropout. Another seed is another repeat of the same
    settings."""

    @property
    def largest_batch_size(self) -> int:
        """Sequences in a step at the end of the training."""
        return self.batch_size_after(1.0)

    def batch_size_after(self, share: float) -> int:
        """Sequences in the step that begins after this share of the tokens."""
        doubled = 0 if self.batch_schedule is None else sum(share >= point for point in self.batch_schedule.double_at)
        return self.batch_size << doubled

    @model_validator(mode="after")
    def _possible(self) -> Self:
        faults = []
        if self.batch_schedule is not None and self.epochs is not None:
            faults.append("batch_schedule doubles at shares of the tokens; give tokens instead of epochs")
        if self.batch_schedule is not None and self.warmup_steps is not None:
            faults.append("warmup_steps has no one length while the batch grows; give warmup or warmup_tokens")
        if self.tokens is not None and self.epochs is not None:
            faults.append(f"tokens={self.tokens} and epochs={self.epochs} are both set; remove one of them")
        given = {name: getattr(self, name) for name in ("warmup_tokens", "warmup_steps")}
        warmups = {name: value for name, value in given.items() if value is not None}
        # A resolved file has every default, so a default counts as not given.
        if warmups and self.warmup != TrainingConfig.model_fields["warmup"].default:
            warmups = {"warmup": self.warmup} | warmups
        if len(warmups) > 1:
            words = " and ".join(f"{name}={value}" for name, value in warmups.items())
            faults.append(f"{words} each set the warm-up; keep one of them")
        if self.weight_decay_timescale is not None:
            if self.weight_decay != TrainingConfig.model_fields["weight_decay"].default:
                faults.append(
                    f"weight_decay={self.weight_decay:g} and weight_decay_timescale={self.weight_decay_timescale:g} "
                    "both set the weight decay; keep one of them"
                )
            if self.muon.weight_decay is not None:
                faults.append(
                    f"muon.weight_decay={self.muon.weight_decay:g} and weight_decay_timescale="
                    f"{self.weight_decay_timescale:g} both set the weight decay; keep one of them"
                )
        if not warmups and self.warmup + (self.cooldown if self.schedule == "wsd" else 0) > 1:
            faults.append(
                f"warmup={self.warmup} and cooldown={self.cooldown} overlap; lower them so that their sum is at most 1"
            )
        if self.optimizer == "muon" and self.lora is not None:
            faults.append(WITH_LORA)
        if faults:
            raise ValueError("; ".join(faults))
        return self
