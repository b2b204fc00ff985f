"""Speed of fine-tuning on conversations against Hugging Face `Trainer` with padding, step by step in turn.

    python tests/benchmarks/sft_speed.py [--quick] [--corpora sft_zh,sft_en] [--steps N] [--threads 1]

Both sides get the same conversations, each no longer than a row, the same initial weights, number format, optimizer
and learning rate, on the same cores. Theirs is the usual recipe: a conversation a row, padded to the longest of its
micro-batch, labels of -100 outside the assistant's tokens. Ours packs whole conversations into rows, best fit. Steps
differ in what they hold, so speed is told in answer tokens a second: those that the loss is of, which is what
fine-tuning learns from. Before anything is timed, both losses of a micro-batch of the same conversations are compared,
which shows that they train on the same tokens. Needs transformers, accelerate and ../shared/data. The last line is
JSON.

--quick: few steps of the smaller corpus, below a minute. Otherwise below 15 minutes on two cores.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from training_speed import BETA2, LEARNING_RATE, WEIGHT_DECAY, clock, trainer_arguments, wait_for
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.distributed.workers import Workers
from core.memory.malloc_tuning import keep_freed_memory
from core.model_files.huggingface_config import huggingface_config
from core.models.huggingface_names import to_huggingface
from core.models.language_model import LanguageModel
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.precision import choose_precision
from core.settings.training_config import TrainingConfig
from core.step.objectives import summed_loss
from core.step.optimizer import build_optimizer
from core.step.optimizer_step import OptimizerStep, StepResult
from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.tokens.batches import BatchSource
from data_pipeline.tokens.token_blocks import PreparedCorpus

TARGET = 2.0
MODEL = ModelConfig(
    family="decoder", layers=8, width=512, heads=32, kv_heads=8, feed_forward_width=1408, sequence_length=512
)
"""MiniMind's, 26 M parameters."""
BATCH, MICRO_BATCH = 32, 8
"""Rows of ours, conversations of theirs."""
CORPORA = ("sft_en", "sft_zh")


@dataclass
class Measured:
    """What came out for one corpus. Rates are answer tokens a second."""

    corpus: str
    num_conversations: int
    ours_answer_tokens_per_s: float = 0.0
    theirs_answer_tokens_per_s: float = 0.0
    ratio: float = 0.0
    """Median over the pairs of steps."""
    ratio_of_sums: float = 0.0
    """All answer tokens by all seconds of each side."""
    ours_padding: float = 0.0
    theirs_padding: float = 0.0
    ours_real_tokens_per_s: float = 0.0
    theirs_real_tokens_per_s: float = 0.0
    loss_difference: float = 0.0
    """Nats, between both sides on the same conversations with the same weights, in fp32."""
    ratios: list[float] = field(default_factory=list)


@dataclass
class Counted:
    """What steps held, and how long they took."""

    answers: list[int] = field(default_factory=list)
    real: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


Conversation = tuple[list[int], list[bool]]
"""Tokens, and which of them are predicted."""


def conversations_of(data: PreparedCorpus) -> list[Conversation]:
    """Every conversation in the rows of training, as it stands there, shuffled."""
    found: list[Conversation] = []
    for number in range(data.train.num_rows):
        rows = data.train.rows(np.array([number]))
        assert rows.document_ids is not None
        assert rows.is_target is not None
        count = int(rows.num_tokens[0])
        ids = rows.document_ids[0, :count]
        for one in range(int(ids.max()) + 1):
            found.append((rows.tokens[0, :count][ids == one].tolist(), rows.is_target[0, :count][ids == one].tolist()))
    random.Random(0).shuffle(found)
    return found


def prepared(corpus: Path, folder: Path, *, rows: str = "conversations") -> PreparedCorpus:
    """Rows of these conversations."""
    return prepare(
        CorpusConfig(path=str(corpus), holdout=0.02),
        TokenizerConfig(kind="byte-bpe", vocabulary=6400, special_tokens="minimind"),
        PackingConfig.model_validate({"rows": rows, "sequence_length": MODEL.sequence_length}),
        prepared_folder=folder,
        run=for_each_parcel_here,
    )


class Ours:
    """Our side: `OptimizerStep` on packed conversations, as the loop uses it."""

    def __init__(self, data: PreparedCorpus, model: LanguageModel, device: torch.device) -> None:
        self.source = BatchSource(data.train, data.vocabulary, masking_rate=None, seed=0)
        self.workers = Workers(device=device)
        self.counted = Counted()
        training = TrainingConfig(weight_decay=WEIGHT_DECAY, beta2=BETA2)
        self.step = OptimizerStep(
            model,
            build_optimizer(model, training, tokens_per_step=1.0),
            self.source,
            self.workers,
            choose_precision("auto", device),
            batch_size=BATCH,
            micro_batch_size=MICRO_BATCH,
            tokens_per_step=float(BATCH * MODEL.sequence_length),
            clip=1.0,
        )

    def take(self) -> None:
        """One step, timed and counted."""
        number = len(self.counted.seconds)
        began_at = clock()
        result = self.step.take(step=number, position=number * BATCH, learning_rate=lambda _: LEARNING_RATE)
        wait_for(self.workers.device)
        self.counted.seconds.append(clock() - began_at)
        assert isinstance(result, StepResult)
        shard = self.source.shard(position=number * BATCH, batch_size=BATCH, rank=0, num_workers=1)
        batch = self.source.batch(shard, 0, BATCH)
        self.counted.answers.append(len(batch.labels_P))
        self.counted.real.append(batch.num_tokens)
        self.counted.places.append(batch.inputs_BT.numel())


class PaddingCollator:
    """Pads to the longest conversation of a micro-batch; labels are -100 outside answers, as documented."""

    def __init__(self, pad_id: int, counted: Counted | None = None) -> None:
        self.pad_id, self.counted = pad_id, counted
        self.held = [0, 0, 0]

    def __call__(self, conversations: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(one["input_ids"]) for one in conversations)
        shape = (len(conversations), longest)
        batch = {
            "input_ids": torch.full(shape, self.pad_id),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, -100),
        }
        for row, one in enumerate(conversations):
            count = len(one["input_ids"])
            batch["input_ids"][row, :count] = torch.tensor(one["input_ids"])
            batch["attention_mask"][row, :count] = 1
            batch["labels"][row, :count] = torch.tensor(one["labels"])
        held = ((batch["labels"] != -100).sum(), batch["attention_mask"].sum(), batch["input_ids"].numel())
        self.held = [before + int(now) for before, now in zip(self.held, held, strict=True)]
        return batch

    def take_counts(self) -> tuple[int, int, int]:
        """Answer tokens, real tokens and places since the last call."""
        held, self.held = self.held, [0, 0, 0]
        return held[0], held[1], held[2]


class InTurn(TrainerCallback):
    """After each of their steps takes one of ours; notes what both held and how long they took."""

    def __init__(self, ours: Ours, collator: PaddingCollator) -> None:
        self.ours, self.collator, self.counted = ours, collator, Counted()
        self._began_at = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began_at = clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        wait_for(self.ours.workers.device)
        self.counted.seconds.append(clock() - self._began_at)
        answers, real, places = self.collator.take_counts()
        self.counted.answers.append(answers)
        self.counted.real.append(real)
        self.counted.places.append(places)
        keep_freed_memory(True)
        self.ours.take()
        keep_freed_memory(False)
        self._began_at = clock()


def as_their_rows(conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
    """As a data set of transformers has them."""
    return [
        {
            "input_ids": tokens,
            "labels": [token if is_target else -100 for token, is_target in zip(tokens, targets, strict=True)],
        }
        for tokens, targets in conversations
    ]


def their_model(data: PreparedCorpus, ours: LanguageModel, device: torch.device) -> Any:
    """transformers' own model of the same shape with the same weights."""
    config = AutoConfig.for_model(**huggingface_config(MODEL, data.vocabulary, ours.tokens.num_embeddings))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model.load_state_dict(to_huggingface(ours.state_dict(), MODEL), strict=False)
    return model.to(device)


def their_trainer(
    model: Any, rows: list[dict[str, Any]], collator: Callable[..., Any], callback: TrainerCallback, num_steps: int
) -> Trainer:
    """`Trainer` as its documentation would have it for this job."""
    arguments = trainer_arguments(
        next(model.parameters()).device, batch_size=BATCH, micro_batch_size=MICRO_BATCH, num_steps=num_steps
    )
    return Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[callback])  # type: ignore[arg-type]


@torch.no_grad()
def loss_difference(data: PreparedCorpus, ours: LanguageModel, theirs: Any, device: torch.device) -> float:
    """Between both losses of the conversations in a few packed rows, nats a predicted token, in fp32."""
    source = BatchSource(data.train, data.vocabulary, masking_rate=None, seed=0, shuffle=False)
    batch = source.batch(source.shard(position=0, batch_size=2, rank=0, num_workers=1), 0, 2).to(device)
    loss, count = summed_loss(ours, batch, choose_precision("fp32", device))
    rows = data.train.rows(np.arange(2))
    assert rows.document_ids is not None
    assert rows.is_target is not None
    same = [
        (rows.tokens[row][here].tolist(), rows.is_target[row][here].tolist())
        for row in range(2)
        for one in range(int(rows.document_ids[row].max()) + 1)
        for here in [(rows.document_ids[row] == one) & rows.is_real()[row]]
    ]
    padded = PaddingCollator(data.vocabulary.pad_id)(as_their_rows(same))
    their_loss = theirs(**{name: tensor.to(device) for name, tensor in padded.items()}).loss
    return abs(float(loss) / count - float(their_loss))


def measure(name: str, corpus: Path, device: torch.device, *, num_steps: int) -> Measured:
    """Everything about one corpus."""
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(corpus, Path(folder))
        conversations = conversations_of(data)
        torch.manual_seed(0)
        model = build_model(MODEL, data.vocabulary.size).to(device)
        theirs = their_model(data, model, device)
        found = Measured(name, len(conversations), loss_difference=loss_difference(data, model, theirs, device))
        ours, collator = Ours(data, model, device), PaddingCollator(data.vocabulary.pad_id)
        in_turn = InTurn(ours, collator)
        their_trainer(theirs, as_their_rows(conversations), collator, in_turn, num_steps).train()
    # The first step warms both up.
    rates = {side: _rates(counted) for side, counted in (("ours", ours.counted), ("theirs", in_turn.counted))}
    found.ratios = [one / other for one, other in zip(rates["ours"], rates["theirs"], strict=True)]
    found.ratio = statistics.median(found.ratios)
    found.ours_answer_tokens_per_s = _rate(ours.counted.answers, ours.counted)
    found.theirs_answer_tokens_per_s = _rate(in_turn.counted.answers, in_turn.counted)
    found.ratio_of_sums = found.ours_answer_tokens_per_s / found.theirs_answer_tokens_per_s
    found.ours_real_tokens_per_s = _rate(ours.counted.real, ours.counted)
    found.theirs_real_tokens_per_s = _rate(in_turn.counted.real, in_turn.counted)
    found.ours_padding = 1 - sum(ours.counted.real) / sum(ours.counted.places)
    found.theirs_padding = 1 - sum(in_turn.counted.real) / sum(in_turn.counted.places)
    return found


def _rates(counted: Counted) -> list[float]:
    return [tokens / elapsed_s for tokens, elapsed_s in zip(counted.answers[1:], counted.seconds[1:], strict=True)]


def _rate(tokens: Sequence[int], counted: Counted) -> float:
    return sum(tokens[1:]) / sum(counted.seconds[1:])


def report(found: Sequence[Measured]) -> None:
    """The table."""
    print(
        f"\n{'conversations':<16}{'ours':>9}{'theirs':>9}{'ratio':>8}{'of sums':>9}{'claimed':>9}"
        f"{'padding':>17}{'loss':>10}"
    )
    for one in found:
        padding = f"{one.ours_padding:.0%} and {one.theirs_padding:.0%}"
        print(
            f"{one.corpus + ', ' + format(one.num_conversations, ','):<16}{one.ours_answer_tokens_per_s:9,.0f}"
            f"{one.theirs_answer_tokens_per_s:9,.0f}{one.ratio:7.2f}x{one.ratio_of_sums:8.2f}x{TARGET:8.1f}x"
            f"{padding:>17}{one.loss_difference:10.1e}"
        )
    print("answer tokens a second; padding ours and theirs; loss: nats between both on the same conversations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--corpora", default="")
    parser.add_argument("--steps", type=int, help="of each side")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared/data")
    parser.add_argument("--threads", type=int, help="1: processor time is measured, which a busy machine leaves alone")
    parser.add_argument(
        "--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    arguments = parser.parse_args()
    wanted = arguments.corpora.split(",") if arguments.corpora else CORPORA[:1] if arguments.quick else CORPORA
    missing = [name for name in wanted if not list((arguments.data / name).glob("*.jsonl"))]
    if missing:
        sys.exit(f"no conversations in {', '.join(str(arguments.data / name) for name in missing)}; give --data FOLDER")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    began_at = time.perf_counter()
    num_steps = arguments.steps or (2 if arguments.quick else 8)
    found = []
    for name in wanted:
        found.append(measure(name, arguments.data / name / "*.jsonl", arguments.device, num_steps=num_steps))
        report(found[-1:])
    if len(found) > 1:
        report(found)
    ratios = {f"answer tokens/s over Trainer on padded rows, {one.corpus}": one.ratio for one in found}
    settings = {"seconds": round(time.perf_counter() - began_at), "threads": torch.get_num_threads()}
    corpora = [asdict(one) for one in found]
    print(json.dumps({"benchmark": "sft_speed", "ratios": ratios, **settings, "corpora": corpora}))


if __name__ == "__main__":
    main()
