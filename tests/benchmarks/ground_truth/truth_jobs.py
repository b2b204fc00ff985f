"""The jobs of the ground truth: corpus, model, length, grid of settings, and the order in which they are trained."""

import math
import random
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from core.settings.run_config import RunConfig
from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.tokens.token_blocks import PreparedCorpus

REAL_DATA = Path(__file__).resolve().parents[4] / "shared" / "data"

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares r of the full length at which a training is annealed and averaged."""
TRUNK_POINTS = 32
COOLDOWN = 0.15
"""Share of a length that its branch takes, at least."""
FEWEST_BRANCH_STEPS = 50
LARGEST_COOLDOWN = 5 / 8
"""Share of a length that a branch takes at most, where the length has few steps."""
AVERAGED = 0.18
"""Share of a length, at its end, whose weights are averaged (arXiv:2507.17634)."""
WARMUP_SHARE = SHARES[0] / 10
"""Share of the full length: a tenth of the shortest length, in tokens the same for all settings."""
REPEATED = 8
"""Best settings that are trained with further seeds."""
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """One point of a grid."""

    learning_rate: float
    batch_rows: int
    third: float
    """Value of the job's third setting."""


@dataclass(frozen=True)
class Job:
    """One corpus with one model, trained at every setting of a grid."""

    name: str
    role: Literal["design", "judge"]
    """design: the form of a predictor may be chosen by it. judge: it only judges, and nobody tunes by it."""
    corpus: CorpusConfig
    vocabulary: int
    width: int
    third: Literal["beta2", "masking_rate"]
    thirds: tuple[float, ...]
    learning_rates: tuple[float, ...]
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Rows."""
    fewest_steps: int = 320
    """Steps of the largest batch."""
    row_tokens: int = 32
    layers: int = 2
    form: Literal["modern", "roberta"] = "modern"
    """Of an encoder."""
    is_packed: bool = True
    """False: a row is the beginning of one document."""
    repeated: int = REPEATED
    unigram_loss: float = math.nan
    """Nats a token on the holdout of the best prediction that sees no other token."""

    @property
    def is_causal(self) -> bool:
        """Causal rather than masked LM."""
        return self.third == "beta2"

    @property
    def tokens(self) -> int:
        """Full length in tokens; whole steps of every batch."""
        return self.fewest_steps * max(self.batches) * self.row_tokens

    def steps(self, setting: Setting) -> int:
        """Steps of the full length."""
        return self.tokens // (setting.batch_rows * self.row_tokens)

    def in_order(self) -> list[Setting]:
        """All settings in the order of training, in which a beginning covers the grid evenly.

        One batch follows the other, each with its other settings shuffled by the name of the job. The smallest batch
        with the three largest rates comes last: it takes most steps and tells least.
        """
        shuffled = random.Random(self.name)
        columns = []
        for batch in self.batches:
            column = [Setting(rate, batch, third) for rate, third in product(self.learning_rates, self.thirds)]
            shuffled.shuffle(column)
            columns.append(column)
        mixed = [setting for row in zip(*columns, strict=True) for setting in row]
        corner = set(self.learning_rates[-3:])
        return sorted(mixed, key=lambda one: one.batch_rows == min(self.batches) and one.learning_rate in corner)

    def run_config(self, setting: Setting, *, seed: int) -> RunConfig:
        """Settings of the trunk: constant learning rate after the warm-up."""
        model: dict[str, Any] = {
            "layers": self.layers, "width": self.width, "heads": 2, "sequence_length": self.row_tokens,
        }  # fmt: skip
        training: dict[str, Any] = {
            "batch_size": setting.batch_rows, "micro_batch_size": setting.batch_rows,
            "tokens": at_step(self, setting, self.steps(setting)), "learning_rate": setting.learning_rate,
            "schedule": "constant", "warmup": WARMUP_SHARE, "precision": "fp32", "seed": seed,
        }  # fmt: skip
        if self.is_causal:
            model["family"] = "decoder"
            training["beta2"] = setting.third
            objective: dict[str, Any] = {"causal_lm": {}}
        else:
            model |= {"family": "encoder", "form": self.form}
            objective = {"masked_lm": {"masking_rate": setting.third}}
        return RunConfig.model_validate({"model": model, "objective": objective, "training": training})

    def prepared(self, folder: Path) -> PreparedCorpus:
        """The job's token blocks, made in this folder unless they are there."""
        return prepare(
            self.corpus,
            TokenizerConfig(vocabulary=self.vocabulary),
            PackingConfig(
                sequence_length=self.row_tokens,
                rows="packed" if self.is_packed else "one_per_row",
                too_long="split" if self.is_packed else "truncate",
            ),
            prepared_folder=folder,
            run=for_each_parcel_here,
        )


def at_step(job: Job, setting: Setting, step: int) -> int:
    """Tokens that are reached with this step and not before; half a step less, as a row at the end may be short."""
    return max(0, round((step - 0.5) * setting.batch_rows * job.row_tokens))


def branch_steps(length_steps: int) -> int:
    """Steps of the cooldown of a length: 15 %, but at least 50, unless that is more than five eighths of it."""
    fewest = min(FEWEST_BRANCH_STEPS, int(LARGEST_COOLDOWN * length_steps))
    return max(1, round(COOLDOWN * length_steps), fewest)


def rates(lowest: float) -> tuple[float, ...]:
    """Seven learning rates over two decades, evenly on a logarithmic scale."""
    return tuple(float(f"{lowest * 10 ** (number / 3):.3g}") for number in range(7))


_BOOKS = CorpusConfig(path=str(REAL_DATA / "english/books/*.txt"), documents="paragraphs", holdout=0.0014)
_PACKETS = CorpusConfig(path=str(REAL_DATA / "traffic_ndpi/packets.csv"), text="text", holdout=0.025)
_CHINESE = CorpusConfig(path=str(REAL_DATA / "chinese/poems_minimind.jsonl"), holdout=0.0019)

JOBS = {
    job.name: job
    for job in (
        Job("causal_books", "design", _BOOKS, 300, 32, "beta2", (0.95, 0.99), rates(5e-4), unigram_loss=4.22),
        # Packets begin with headers, whose form depends on the place: learned positions, and a row for each packet.
        Job(
            "masked_packets",
            "design",
            _PACKETS,
            300,
            64,
            "masking_rate",
            (0.15, 0.3),
            rates(2e-4),
            form="roberta",
            is_packed=False,
            unigram_loss=3.59,
        ),
        Job("masked_books", "judge", _BOOKS, 300, 64, "masking_rate", (0.3, 0.5), rates(2e-4), unigram_loss=4.21),
        Job("causal_chinese", "judge", _CHINESE, 300, 32, "beta2", (0.95, 0.99), rates(5e-4), unigram_loss=4.44),
    )
}


def quick(job: Job, corpus: Path) -> Job:
    """A job of the same form that takes seconds: a small corpus, eight settings, one with further seeds."""
    return replace(
        job,
        corpus=CorpusConfig(path=str(corpus), holdout=0.05),
        width=16,
        layers=1,
        learning_rates=job.learning_rates[2:4],
        batches=(2, 4),
        fewest_steps=32,
        repeated=1,
    )
