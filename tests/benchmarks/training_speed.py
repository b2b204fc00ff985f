"""Training speed, memory and loss against Hugging Face `Trainer`, step by step in turn on the same machine.

    python tests/benchmarks/training_speed.py [--quick] [--systems D,B-340,B-512,A] [--steps N] [--threads 1]

Both sides get the same initial weights, rows, global batch, micro-batch, number format, optimizer and learning rate;
after every step of theirs follows one of ours, so that whatever else the machine does meets both. Rows are packed on
both sides, which favours theirs: the usual recipe has a document a row and pads to the longest of a micro-batch, which
is measured as well and told in real tokens. Ours keeps freed memory in the process as in any run
(core/memory/malloc_tuning.py); in their turns the allocator does what it does by default. Theirs keeps its library's
default dropout (0.1 for RoBERTa), as its users do; `--without-dropout` takes that from it too. Needs transformers and
accelerate. The last line is JSON.

--quick: one micro-batch a step, three steps, below a minute. Otherwise below 15 minutes on two cores.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.distributed.workers import Workers
from core.memory.malloc_tuning import keep_freed_memory
from core.memory.memory_limit import memory_limit
from core.memory.storage_meter import StorageMeter
from core.model_files.huggingface_config import huggingface_config
from core.models.huggingface_names import from_huggingface, to_huggingface
from core.models.language_model import LanguageModel
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.precision import choose_precision
from core.settings.training_config import TrainingConfig
from core.step.evaluation import evaluate
from core.step.holdout_masks import MASKING_RATE, MASKING_SEED
from core.step.noise_scale import steps_between_measurements
from core.step.optimizer import build_optimizer, gradient_norm
from core.step.optimizer_step import OptimizerStep, StepResult
from core.step.step_profile import model_flops_a_token
from data_pipeline.schema.corpus_config import TokenizerConfig
from data_pipeline.tokens.batches import BatchSource
from data_pipeline.tokens.token_blocks import Rows
from data_pipeline.tokens.tokenizer import Vocabulary, train_tokenizer, vocabulary_of

LEARNING_RATE = 5e-4
WEIGHT_DECAY = 0.01
BETA2 = 0.98
NUM_HOLDOUT_ROWS = 64
EVALUATE_EVERY_STEPS = 2
NUM_PADDED_STEPS = 2
HAS_THEIR_DROPOUT = "--without-dropout" not in sys.argv


@dataclass(frozen=True)
class System:
    """One of the systems whose training people do by hand today."""

    name: str
    corpus: str
    model: ModelConfig
    tokenizer: TokenizerConfig
    batch_size: int
    micro_batch_size: int
    target: float
    """Tokens a second over theirs that we claim, at least."""
    num_steps: int = 4


_D = ModelConfig(
    family="encoder", layers=6, width=768, heads=12, sequence_length=128, max_sequence_length=512, norm_epsilon=1e-12
)
_B = ModelConfig(
    family="decoder", layers=8, width=512, heads=32, kv_heads=8, feed_forward_width=1408, sequence_length=512
)
_A = ModelConfig(family="encoder", layers=6, width=384, heads=6, sequence_length=256)
_BPE = TokenizerConfig(kind="byte-bpe", vocabulary=52_000)
_MINIMIND = TokenizerConfig(kind="byte-bpe", vocabulary=6_400, special_tokens="minimind")
_HEX = TokenizerConfig(kind="words", vocabulary=65_541)
SYSTEMS = (
    System("D", "kant/kant.txt", _D, _BPE, batch_size=64, micro_batch_size=16, target=3.0, num_steps=6),
    System(
        "B-340",
        "chinese/*.jsonl",
        _B.model_copy(update={"sequence_length": 340}),
        _MINIMIND,
        batch_size=32,
        micro_batch_size=16,
        target=1.5,
    ),
    System("B-512", "chinese/*.jsonl", _B, _MINIMIND, batch_size=32, micro_batch_size=16, target=1.5),
    System("A", "traffic_ndpi/packets.csv", _A, _HEX, batch_size=64, micro_batch_size=16, target=4.0),
)


@dataclass
class Measured:
    """What came out for one system. Rates are tokens a second; losses are of the same holdout."""

    system: str
    target: float
    ours_tokens_per_s: float = 0.0
    theirs_tokens_per_s: float = 0.0
    ratio: float = 0.0
    """Median over the pairs of steps."""
    ours_loss: list[float] = field(default_factory=list)
    theirs_loss: list[float] = field(default_factory=list)
    tokens_at_loss: list[int] = field(default_factory=list)
    share_of_matmul_rate: float = 0.0
    ours_peak_bytes: int = 0
    theirs_peak_bytes: int = 0
    padded_ratio: float | None = None
    """Real tokens a second over theirs where each document is a row of its own, as the usual recipe has it."""
    padding_share: float | None = None
    """Of all places in the rows of that recipe."""
    noise_share: float = 0.0
    """Share of the time of a step that measuring the gradient noise takes, spread over all steps."""
    stretches_ms: dict[str, float] = field(default_factory=dict)
    operators_share: dict[str, float] = field(default_factory=dict)

    @property
    def memory_ratio(self) -> float:
        """Our peak over theirs."""
        return self.ours_peak_bytes / self.theirs_peak_bytes


class PackedRows:
    """Rows in memory; what `BatchSource` reads of token blocks."""

    def __init__(self, tokens: NDArray[np.uint32]) -> None:
        self.tokens = tokens
        self.num_rows, self.sequence_length = tokens.shape
        self.num_tokens = tokens.size
        self.num_bytes = 4 * tokens.size  # nothing here asks for bits a byte

    def rows(self, row_numbers: NDArray[np.int64]) -> Rows:
        lengths = np.full(len(row_numbers), self.sequence_length, np.int32)
        return Rows(self.tokens[row_numbers], lengths, None)


class Corpus:
    """Real text, tokenized and packed: documents one after another in rows of one length."""

    def __init__(self, system: System, data: Path) -> None:
        documents = list(_documents(data, system.corpus))
        self.tokenizer: Tokenizer = train_tokenizer(system.tokenizer, documents)
        # The size that was asked for, as the systems' models have it, though a small text has fewer different tokens.
        self.vocabulary: Vocabulary = replace(vocabulary_of(self.tokenizer), size=system.tokenizer.vocabulary)
        bos, eos = self.vocabulary.bos_id, self.vocabulary.eos_id
        encoded = [[bos, *e.ids, eos] for e in self.tokenizer.encode_batch_fast(documents, add_special_tokens=False)]
        random.Random(0).shuffle(encoded)
        length = system.model.sequence_length
        self.documents = [document[:length] for document in encoded]
        stream = np.concatenate([np.array(document, np.uint32) for document in encoded])
        rows = stream[: len(stream) // length * length].reshape(-1, length)
        self.holdout, self.train = PackedRows(rows[:NUM_HOLDOUT_ROWS]), PackedRows(rows[NUM_HOLDOUT_ROWS:])


def _documents(data: Path, pattern: str) -> Iterator[str]:
    for path in sorted(data.glob(pattern)):
        if path.suffix == ".jsonl":
            for line in path.read_text(encoding="utf-8").splitlines():
                yield json.loads(line)["text"].removeprefix("<s>").removesuffix("</s>")
        elif path.suffix == ".csv":
            yield from pd.read_csv(path, usecols=["text"])["text"].dropna()
        else:
            yield from (line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


class Ours:
    """Our side: `OptimizerStep`, as the loop uses it."""

    def __init__(self, system: System, corpus: Corpus, model: LanguageModel, batch_size: int, device: torch.device):
        rate = None if system.model.is_causal else MASKING_RATE
        training = TrainingConfig(weight_decay=WEIGHT_DECAY, beta2=BETA2)
        self.model = model
        self.source: BatchSource = BatchSource(corpus.train, corpus.vocabulary, masking_rate=rate, seed=0)  # type: ignore[arg-type]
        self.holdout = BatchSource(
            corpus.holdout,  # type: ignore[arg-type]
            corpus.vocabulary,
            masking_rate=rate,
            seed=MASKING_SEED,
            shuffle=False,
        )
        self.precision = choose_precision("auto", device)
        self.workers = Workers(device=device)
        self.batch_size = batch_size
        self.num_taken = 0
        self.step = OptimizerStep(
            model,
            build_optimizer(model, training, tokens_per_step=1.0),
            self.source,
            self.workers,
            self.precision,
            batch_size=batch_size,
            micro_batch_size=system.micro_batch_size,
            tokens_per_step=float(batch_size * system.model.sequence_length),
            clip=1.0,
        )

    def take(self) -> None:
        """One step."""
        result = self.step.take(
            step=self.num_taken, position=self.num_taken * self.batch_size, learning_rate=lambda _: LEARNING_RATE
        )
        assert isinstance(result, StepResult)
        self.num_taken += 1

    def holdout_loss(self, model: LanguageModel) -> float:
        """Of ours, or of theirs in our form."""
        found = evaluate(model, self.holdout, self.workers, micro_batch_size=16, precision=self.precision)
        assert isinstance(found, dict)
        return found["holdout/loss_nats_per_token"]


class InTurn(TrainerCallback):
    """After each of their steps takes one of ours; notes both times and, at some steps, both losses."""

    def __init__(self, ours: Ours, system: System, evaluate_every: int | None) -> None:
        self.ours = ours
        self.system = system
        self.evaluate_every = evaluate_every
        self.times: list[tuple[float, float]] = []
        self.losses: list[tuple[int, float, float]] = []
        self.matmul_rates: list[float] = []
        self._theirs_began_at = 0.0

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        self._note_losses(model)
        self._theirs_began_at = clock()

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        wait_for(self.ours.workers.device)
        theirs_s = clock() - self._theirs_began_at
        keep_freed_memory(True)
        began_at = clock()
        self.ours.take()
        wait_for(self.ours.workers.device)
        self.times.append((theirs_s, clock() - began_at))
        keep_freed_memory(False)
        self.matmul_rates.append(_matmul_flops_per_s(self.ours.workers.device, self.ours.precision.dtype))
        if self.evaluate_every and len(self.times) % self.evaluate_every == 0:
            self._note_losses(model)
        self._theirs_began_at = clock()

    def _note_losses(self, theirs: Any) -> None:
        if self.evaluate_every is None:
            return
        in_our_form = build_model(self.system.model, self.ours.holdout.vocabulary.size).to(self.ours.workers.device)
        tensors = dict(theirs.state_dict())
        in_our_form.load_state_dict(from_huggingface(tensors, self.system.model), strict=False)
        tokens = len(self.times) * self.ours.batch_size * self.system.model.sequence_length
        losses = self.ours.holdout_loss(in_our_form), self.ours.holdout_loss(self.ours.model)
        self.losses.append((tokens, *losses))


class _NoTurn(TrainerCallback):
    pass


class CountingCollator(DataCollatorForLanguageModeling):
    """Pads to the longest row of a micro-batch, as ever, and counts."""

    num_real = num_places = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        batch = super().__call__(*args, **kwargs)
        self.num_real += int(batch["attention_mask"].sum())
        self.num_places += batch["attention_mask"].numel()
        return batch


def their_model(system: System, corpus: Corpus, ours: LanguageModel, device: torch.device) -> Any:
    """transformers' own model of the same shape with the same weights."""
    raw = huggingface_config(system.model, corpus.vocabulary, ours.tokens.num_embeddings)
    if HAS_THEIR_DROPOUT:
        raw = {name: value for name, value in raw.items() if not name.endswith(("dropout", "dropout_prob"))}
    config = AutoConfig.for_model(**raw)
    kind = AutoModelForCausalLM if system.model.is_causal else AutoModelForMaskedLM
    model = kind.from_config(config, attn_implementation="sdpa")
    model.load_state_dict(to_huggingface(ours.state_dict(), system.model), strict=False)
    return model.to(device)


def trainer_arguments(
    device: torch.device, *, batch_size: int, micro_batch_size: int, num_steps: int
) -> TrainingArguments:
    """Of `Trainer`, as its documentation would have them, with our optimizer and learning rate."""
    return TrainingArguments(
        output_dir="/tmp/unused",
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=batch_size // micro_batch_size,
        max_steps=num_steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=WEIGHT_DECAY,
        adam_beta2=BETA2,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=choose_precision("auto", device).name == "bf16",
        use_cpu=device.type == "cpu",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )


def their_trainer(
    system: System,
    corpus: Corpus,
    model: Any,
    callback: TrainerCallback,
    *,
    batch_size: int,
    num_steps: int,
    is_padded: bool = False,
) -> Trainer:
    """`Trainer` as its documentation would have it for this job, over packed rows or over a document a row."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=corpus.tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>" if system.model.is_causal else "<pad>",
        mask_token=None if system.model.is_causal else "<mask>",
    )
    arguments = trainer_arguments(
        next(model.parameters()).device,
        batch_size=batch_size,
        micro_batch_size=min(system.micro_batch_size, batch_size),
        num_steps=num_steps,
    )
    collator = CountingCollator(tokenizer, mlm=not system.model.is_causal, mlm_probability=MASKING_RATE)
    num_rows = num_steps * batch_size
    packed = (row.astype(np.int64).tolist() for row in corpus.train.tokens[:num_rows])
    rows = [{"input_ids": row} for row in (corpus.documents[:num_rows] if is_padded else packed)]
    return Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[callback])  # type: ignore[arg-type]


def measure(system: System, data: Path, device: torch.device, *, quick: bool, num_steps: int) -> Measured:
    """Everything about one system."""
    corpus = Corpus(system, data)
    batch_size = system.micro_batch_size if quick else system.batch_size
    torch.manual_seed(0)
    model = build_model(system.model, corpus.vocabulary.size).to(device)
    theirs = their_model(system, corpus, model, device)
    ours = Ours(system, corpus, model, batch_size, device)
    in_turn = InTurn(ours, system, None if quick else EVALUATE_EVERY_STEPS)
    their_trainer(system, corpus, theirs, in_turn, batch_size=batch_size, num_steps=num_steps).train()

    tokens = batch_size * system.model.sequence_length
    timed = in_turn.times[1:]  # the first step warms both up
    ours_s, theirs_s = (statistics.median(times[side] for times in timed) for side in (1, 0))
    found = Measured(system.name, system.target)
    found.ours_tokens_per_s, found.theirs_tokens_per_s = tokens / ours_s, tokens / theirs_s
    found.ratio = statistics.median(theirs_time / ours_time for theirs_time, ours_time in timed)
    found.tokens_at_loss = [tokens for tokens, _, _ in in_turn.losses]
    found.theirs_loss = [loss for _, loss, _ in in_turn.losses]
    found.ours_loss = [loss for _, _, loss in in_turn.losses]
    shard = ours.source.shard(position=0, batch_size=system.micro_batch_size, rank=0, num_workers=1)
    batch = ours.source.batch(shard, 0, system.micro_batch_size).to(device)
    flops = model_flops_a_token(model, batch, ours.precision)
    found.share_of_matmul_rate = statistics.median(
        tokens * flops / ours_time / rate for (_, ours_time), rate in zip(timed, in_turn.matmul_rates[1:], strict=True)
    )
    if not quick:
        _measure_padded(found, system, corpus, theirs, ours)
    keep_freed_memory(True)
    ours.step.profile.read(num_steps=1)
    ours.take()
    found.stretches_ms = ours.step.profile.read(num_steps=1)
    found.noise_share = _noise_share(ours, tokens_per_step=tokens, step_s=ours_s)
    if system.name == "D":
        found.operators_share = shares_of_operators(ours)
        del theirs, in_turn, ours, model
        if not quick:
            found.ours_peak_bytes, found.theirs_peak_bytes = peaks(system, corpus, device)
    return found


def _measure_padded(found: Measured, system: System, corpus: Corpus, theirs: Any, ours: Ours) -> None:
    """Theirs over a document a row, in turn with ours; in real tokens a second."""
    in_turn = InTurn(ours, system, None)
    trainer = their_trainer(
        system, corpus, theirs, in_turn, batch_size=ours.batch_size, num_steps=NUM_PADDED_STEPS, is_padded=True
    )
    trainer.train()
    collator = trainer.data_collator
    assert isinstance(collator, CountingCollator)
    # Rows differ in length from step to step, so all of theirs are told against all of ours.
    theirs_s, ours_s = (sum(times[side] for times in in_turn.times) for side in (0, 1))
    our_tokens = len(in_turn.times) * ours.batch_size * system.model.sequence_length
    found.padded_ratio = (our_tokens / ours_s) / (collator.num_real / theirs_s)
    found.padding_share = 1 - collator.num_real / collator.num_places


def _noise_share(ours: Ours, *, tokens_per_step: int, step_s: float) -> float:
    """What a measurement adds, one more norm of the gradients, over the steps from one to the next."""
    parameters = list(ours.model.parameters())
    seconds = []
    for _ in range(3):
        began_at = clock()
        gradient_norm(parameters).item()
        seconds.append(clock() - began_at)
    every = steps_between_measurements(tokens_per_step=tokens_per_step, needs_extra_pass=False)
    return statistics.median(seconds) / (every * step_s)


def peaks(system: System, corpus: Corpus, device: torch.device) -> tuple[int, int]:
    """Most bytes in live tensors over two steps of two micro-batches each, ours and theirs, counted the same way."""
    batch_size = 2 * system.micro_batch_size
    found = []
    for is_ours in (True, False):
        with memory_limit(None, device) as meter:
            model = build_model(system.model, corpus.vocabulary.size).to(device)
            if is_ours:
                ours = Ours(system, corpus, model, batch_size, device)
                for _ in range(2):
                    ours.take()
                del ours
            else:
                theirs = their_model(system, corpus, model, device)
                del model
                if isinstance(meter, StorageMeter):
                    meter.peak_bytes = meter.current_bytes
                their_trainer(system, corpus, theirs, _NoTurn(), batch_size=batch_size, num_steps=2).train()
        found.append(meter.peak_bytes)
    return found[0], found[1]


_KINDS = (
    ("matrix products", ("aten::mm", "aten::addmm", "aten::linear")),
    ("attention", ("aten::bmm", "aten::baddbmm", "scaled_dot", "fusedattention", "roll")),
    ("softmax of attention and loss", ("softmax",)),
    ("norm", ("layer_norm", "rmsnorm")),
    ("activation", ("gelu", "silu")),
    ("optimizer", ("adamw", "foreach")),
    ("casts and copies", ("copy", "_to", "clone", "contiguous", "cat")),
    ("loss beside its softmax", ("amax", "aten::log", "scatter", "gather")),
    ("embedding and selection", ("embedding", "index")),
    ("sums and zeros, mostly of gradients", ("add", "sum", "fill_", "zero", "accumulategrad")),
)


def shares_of_operators(ours: Ours) -> dict[str, float]:
    """Where the time of one step goes, by kind of operator; shares of the time in operators."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        ours.take()
    shares = dict.fromkeys([kind for kind, _ in _KINDS] + ["the rest"], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in _KINDS if any(name in event.key.lower() for name in names)), "the rest")
        shares[kind] += event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: share / total for kind, share in shares.items()}


def _matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Best rate of a product of large matrices just now, by the same clock as the steps."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(4):
        wait_for(device)
        began_at = clock()
        left @ right
        wait_for(device)
        times.append(clock() - began_at)
    return 2.0 * size**3 / min(times)


def clock() -> float:
    """Seconds; with one thread the processor's own, which do not run while others have the core."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(found: list[Measured]) -> None:
    """The table, and what it is made of."""
    print(f"\n{'system':8}{'ours tok/s':>12}{'theirs':>10}{'ratio':>8}{'claimed':>9}{'of matmul rate':>16}")
    for m in found:
        print(
            f"{m.system:8}{m.ours_tokens_per_s:12,.0f}{m.theirs_tokens_per_s:10,.0f}{m.ratio:7.2f}x{m.target:8.1f}x"
            f"{m.share_of_matmul_rate:15.0%}"
        )
    for m in found:
        print(f"\n{m.system}: " + ", ".join(f"{name[8:-3]} {ms:.0f} ms" for name, ms in m.stretches_ms.items()))
        if m.operators_share:
            print("  of the time in operators: " + ", ".join(f"{k} {s:.1%}" for k, s in m.operators_share.items()))
        if m.theirs_peak_bytes:
            print(
                f"  peak memory {m.ours_peak_bytes / 2**30:.2f} GiB against {m.theirs_peak_bytes / 2**30:.2f} GiB: "
                f"{m.memory_ratio:.2f} (claimed: at most 0.6)"
            )
        if m.padded_ratio is not None and m.padding_share is not None:
            print(
                f"  theirs with a document a row: {m.padding_share:.0%} padding, {m.padded_ratio:.2f}x in real tokens"
            )
        print(f"  measuring the gradient noise takes {m.noise_share:.2%} of the time of a step (claimed: under 1 %)")
        for tokens, ours, theirs in zip(m.tokens_at_loss, m.ours_loss, m.theirs_loss, strict=True):
            print(f"  after {tokens:8,} tokens: holdout loss {ours:.4f} ours, {theirs:.4f} theirs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--without-dropout", action="store_true")
    parser.add_argument("--systems", default="")
    parser.add_argument("--steps", type=int, help="of each side, for longer curves of loss than 15 minutes allow")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared/data")
    parser.add_argument("--threads", type=int, help="1: processor time is measured, which a busy machine leaves alone")
    parser.add_argument(
        "--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    arguments = parser.parse_args()
    wanted = (
        arguments.systems.split(",") if arguments.systems else ["D"] if arguments.quick else [s.name for s in SYSTEMS]
    )
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    began_at = time.perf_counter()
    found = []
    for system in SYSTEMS:
        if system.name in wanted:
            num_steps = arguments.steps or (3 if arguments.quick else system.num_steps)
            found.append(measure(system, arguments.data, arguments.device, quick=arguments.quick, num_steps=num_steps))
            report(found[-1:])
    print("\n== all ==")
    report(found)
    elapsed_s = round(time.perf_counter() - began_at)
    settings = {"seconds": elapsed_s, "threads": torch.get_num_threads(), "their_dropout": HAS_THEIR_DROPOUT}
    ratios = {f"tokens/s over Trainer, {m.system}": m.ratio for m in found}
    ratios |= {
        f"real tokens/s over Trainer on padded rows, {m.system}": m.padded_ratio for m in found if m.padded_ratio
    }
    ratios |= {f"share of a step that measuring noise takes, {m.system}": m.noise_share for m in found}
    ratios |= {f"share of the matmul rate, {m.system}": m.share_of_matmul_rate for m in found}
    ratios |= {f"peak memory over Trainer, {m.system}": m.memory_ratio for m in found if m.theirs_peak_bytes}
    systems = [asdict(m) for m in found]
    print(json.dumps({"benchmark": "training_speed", "ratios": ratios, **settings, "systems": systems}))


if __name__ == "__main__":
    main()
