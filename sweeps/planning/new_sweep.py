"""Writes a first sweep file for a corpus: the settings a specialist would start with on this corpus and machine."""

import json
import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import yaml

from core.settings.model_config import ModelConfig
from data_pipeline.files.whole_files import write_atomically
from data_pipeline.preparation.corpus_check import BYTES_OF_TOKEN, check
from data_pipeline.preparation.survey import read_parcel
from data_pipeline.reading.corpus_files import find_files
from data_pipeline.reading.file_inspection import examine_files
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.reading.pieces import Piece
from data_pipeline.schema.corpus_config import CorpusConfig, corpus_at
from data_pipeline.schema.settings import format_bytes
from data_pipeline.schema.user_errors import InputFault
from sweeps.analysis.fairness import RemarkVerdict, remarks
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.horizon.expected_optimum import batch_range, expected_optimum, rate_range
from sweeps.settings.file_schema import SCHEMA_FILE, sweep_file_schema
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

_HEX_WORD = re.compile(r"[0-9a-fA-F]{2,4}")
_BYTES_OF_HEX_WORD = 5
_SHARE_OF_PEAK = 0.4
"""Share of the processor's matmul rate that training reaches; a conservative guess."""
_SECONDS_A_TRIAL = 150
_TRIALS = 12
_SIZES = ((2, 64, 2), (2, 128, 2), (4, 256, 4), (6, 384, 6), (6, 768, 12), (12, 768, 12))
"""Layers, width, heads, from small to BERT's base."""


_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
_MEASURED_SIZE = 1024
_FEWEST_LINES = 50
_SHARE_OF_BLANK = 0.02
_LONGEST_WRAPPED = 100
_ENDS_OF_SENTENCES = frozenset('.!?:;"”’)]。！？')
_WRAPPED = """\
# Most lines end inside a sentence, so a document is a paragraph between blank lines, not a line.
"""


@dataclass(frozen=True)
class CorpusFacts:
    """Figures of a corpus from a first look."""

    num_rows: int
    num_bytes: int
    """UTF-8 bytes of the texts kept."""
    forms: tuple[str, ...]
    encodings: tuple[str, ...]
    text_column: str | None
    """None: plain text, or a format without a named column."""
    median_bytes: int
    """Median UTF-8 bytes of a document."""
    is_hex: bool
    """Words are two bytes in hex, as of network packets."""
    is_wrapped: bool = False
    """Plain text whose lines are broken at a width; its documents are the paragraphs between blank lines."""
    has_dialogues: bool = False
    """Rows are conversations."""


def look_at(path: str) -> CorpusFacts:
    """Figures of a corpus.

    Raises:
        CorpusError: The corpus has no readable file.
        InputFault: The corpus has more rejects than a sweep accepts; the message lists them.
    """
    config = corpus_at(path)
    found = check(config)
    if found.problem is not None:
        raise InputFault(found.problem)
    texts = _first_texts(config)
    is_wrapped = {file.format for file in found.files if file.refused is None} == {"txt"} and _is_wrapped(
        texts, num_lines=found.rows_kept, num_blank=sum(file.num_blank_lines for file in found.files)
    )
    if is_wrapped:
        config = config.model_copy(update={"documents": "paragraphs"})
        found, texts = check(config), _first_texts(config)
    words = [word for text in texts for word in text.split()[:100]]
    columns = {file.text_column for file in found.files if file.text_column not in (None, "conversations", "alpaca")}
    return CorpusFacts(
        num_rows=found.rows_kept,
        num_bytes=found.num_text_bytes,
        forms=tuple(sorted({file.format for file in found.files if file.refused is None})),
        encodings=tuple(sorted({file.encoding for file in found.files if file.encoding})),
        text_column=columns.pop() if len(columns) == 1 else None,
        median_bytes=int(median(len(text.encode()) for text in texts)),
        is_hex=sum(bool(_HEX_WORD.fullmatch(word)) for word in words) > 0.9 * len(words),
        is_wrapped=is_wrapped,
        has_dialogues=any(file.text_column in ("conversations", "alpaca") for file in found.files),
    )


def write_new_sweep(path: str, target: Path, *, is_causal: bool, training_flops_per_s: float | None = None) -> str:
    """Write a sweep file for a corpus, and its schema beside it; returns the text of the file.

    Args:
        training_flops_per_s: Training speed of the machine. None: measure it.

    Raises:
        InputFault: The file exists already, or the corpus cannot be used.
    """
    if target.exists():
        raise InputFault(f"{target}: exists already; name another file with --output")
    text = sweep_text(path, look_at(path), is_causal=is_causal, flops_per_s=training_flops_per_s or _flops_per_s())
    # The schema lies beside the file: an editor needs no network, and keeps to this version of pretune.
    write_atomically(target.parent / SCHEMA_FILE, json.dumps(sweep_file_schema(), indent=1) + "\n")
    write_atomically(target, text)
    return text


def sweep_text(path: str, facts: CorpusFacts, *, is_causal: bool, flops_per_s: float) -> str:
    """The text of the sweep file: its batch sizes and its tokens leave no comparison in doubt."""
    tokens, num_batches = 0, 3
    while True:
        text, tokens = _sweep_text(
            path, facts, is_causal=is_causal, flops_per_s=flops_per_s, least_tokens=tokens, num_batches=num_batches
        )
        sweep = resolve_sweep(read_yaml(text), source="the new file")
        if not any(remark.verdict is not RemarkVerdict.FAIR for remark in remarks(sweep, rungs=_rungs(sweep))):
            return text
        # Large batches take too few steps at the first comparison: one is left out, then trials are longer.
        num_batches, tokens = (2, tokens) if num_batches > 2 else (2, round(1.3 * tokens))


def _rungs(sweep: SweepConfig) -> tuple[int, ...]:
    return rung_tokens(sweep.early_stopping, sweep.budget.trial_tokens)


def _sweep_text(
    path: str, facts: CorpusFacts, *, is_causal: bool, flops_per_s: float, least_tokens: int, num_batches: int
) -> tuple[str, int]:
    """The text, and the tokens of a trial.

    Args:
        least_tokens: Least tokens of a trial.
        num_batches: Number of batch sizes, the smallest first.
    """
    is_causal = is_causal or facts.has_dialogues
    vocabulary = 65_541 if facts.is_hex else _vocabulary(facts.num_bytes)
    num_tokens = int(facts.num_bytes / (_BYTES_OF_HEX_WORD if facts.is_hex else BYTES_OF_TOKEN))
    tokens_of_document = max(1, facts.median_bytes * num_tokens // max(facts.num_bytes, 1))
    length = 512 if tokens_of_document > 512 else 256 if tokens_of_document > 128 else 128
    layers, width, heads = _size(num_tokens, vocabulary, length, flops_per_s)
    num_parameters, flops = _cost(layers, width, vocabulary, length)
    tokens = _rounded(max(least_tokens, min(flops_per_s * _SECONDS_A_TRIAL / flops, 4 * num_tokens)))
    holdout = "5%" if facts.num_bytes < 10**7 else "2%" if facts.num_bytes < 10**8 else "1%"
    kind = f"kind: words, vocabulary: {vocabulary}" if facts.is_hex else f"kind: byte-bpe, vocabulary: {vocabulary}"
    special = ", special_tokens: minimind" if is_causal and not facts.is_hex else ""
    column = f", text: {_quoted(facts.text_column)}" if facts.text_column else ""
    rows = f"Half the documents have more than {tokens_of_document:,} tokens, so rows have {length}."
    where = str(Path(path).absolute()) if "://" not in path else path
    documents = ", documents: paragraphs" if facts.is_wrapped else ""
    objective = "sft" if facts.has_dialogues else "causal_lm" if is_causal else "{masked_lm: {}}"
    model = ModelConfig(layers=layers, width=width, heads=heads, sequence_length=length)
    expected = expected_optimum(model, tokens)
    low, high = rate_range(expected)
    seconds = max(1, round(tokens * flops / flops_per_s))
    batches = list(batch_range(expected)[:num_batches])
    laws = f"Published laws expect batches of {expected.batch_rows:,.0f} rows and a learning rate of "
    laws += f"{expected.learning_rate:.2g} here (arXiv:2503.04715)."
    masking = "" if is_causal else "  objective.masked_lm.masking_rate: {uniform: [0.15, 0.45]}\n"
    text = f"""\
# yaml-language-server: $schema={SCHEMA_FILE}
# {facts.num_rows:,} rows, {format_bytes(facts.num_bytes)} of text: {", ".join(facts.forms)}; \
{", ".join(facts.encodings) or "no encoding of their own"}.
name: {_quoted(_name_of(path))}
purpose: Which settings train best inside the memory of this machine?

# A file, a folder, a glob or a list. `pretune prepare FILE --check` shows what is kept and what is rejected.
{_WRAPPED if facts.is_wrapped else ""}corpus: {{path: {_quoted(where)}{column}{documents}, holdout: {holdout}}}
# {_why_vocabulary(facts)}
tokenizer: {{{kind}{special}}}
# {_why_family(facts, is_causal=is_causal)}
# {num_parameters / 1e6:.1f} M parameters. {rows}
model: {{family: {"decoder" if is_causal else "encoder"}, layers: {layers}, width: {width}, heads: {heads}, \
sequence_length: {length}}}
objective: {objective}

# {laws}
search:
  training.learning_rate: {{log_uniform: [{low:.2g}, {high:.2g}]}}
  training.batch_size: {{choice: {batches}}}
{masking}
# About {seconds:,} s per trial on this machine; worse trials end sooner. The corpus has about \
{_in_words(num_tokens)} tokens.
budget: {{trials: {_TRIALS}, tokens_per_trial: {_in_words(tokens)}}}
# micro_batch_size is chosen to fit unless you set it. To use less memory, add resources: {{memory: 8GiB}}.
"""
    return text, tokens


def _why_vocabulary(facts: CorpusFacts) -> str:
    if facts.is_hex:
        return "Each hex word of two bytes has its own id."
    return "Trained once, on the training split: an entry for about each 1,500 bytes of text, from 1,000 to 32,000."


def _why_family(facts: CorpusFacts, *, is_causal: bool) -> str:
    if facts.has_dialogues:
        return "A decoder, because the rows are conversations: only the answers are predicted."
    if is_causal:
        return "A decoder, as --causal asks."
    return "An encoder for texts of labelled or searched documents; `new --causal` writes a decoder, which generates."


def _is_wrapped(texts: list[str], *, num_lines: int, num_blank: int) -> bool:
    """True for prose whose lines are broken at a width: most end inside a sentence, and blank lines stand between."""
    if len(texts) < _FEWEST_LINES or num_blank < _SHARE_OF_BLANK * num_lines:
        return False
    widths = sorted(len(text) for text in texts)
    inside = sum(text.rstrip()[-1:] not in _ENDS_OF_SENTENCES for text in texts)
    return inside > 0.5 * len(texts) and widths[len(widths) * 95 // 100] <= _LONGEST_WRAPPED


def _first_texts(config: CorpusConfig) -> list[str]:
    corpus = examine_files(find_files(config), config, memory=None)

    def read(_name: str, pieces: list[Piece]) -> dict[str, list[str]]:
        return {"texts": read_parcel(pieces, corpus).texts}

    # A corpus with kept rows has texts in at least one parcel.
    return next(result["texts"] for result in for_each_parcel_here(corpus, read) if result["texts"])


def _flops_per_s() -> float:
    if any(os.path.exists(device) for device in _GPU_DEVICES):
        # Torch takes seconds to import, and a processor is measured without it.
        import torch

        from core.step.step_profile import matmul_flops_per_s

        if torch.cuda.is_available():
            return _SHARE_OF_PEAK * matmul_flops_per_s(torch.device("cuda"), torch.bfloat16)
    # Lanes share the CPU; on GPUs each trial has its own device.
    return _SHARE_OF_PEAK * _processor_flops_per_s() / (os.cpu_count() or 1)


def _processor_flops_per_s() -> float:
    """Measured FLOP/s of a large matrix product."""
    matrix = np.ones((_MEASURED_SIZE, _MEASURED_SIZE), np.float32)
    fastest_s = math.inf
    for _ in range(3):
        started_at = time.perf_counter()
        matrix @ matrix
        fastest_s = min(fastest_s, time.perf_counter() - started_at)
    return 2 * _MEASURED_SIZE**3 / fastest_s


def _vocabulary(num_bytes: int) -> int:
    """Vocabulary size whose entries occur often enough to be learnt: about 1,500 bytes of text for each."""
    wanted = num_bytes / 1500
    return next((size for size in (1000, 2000, 4000, 8000, 16_000) if wanted < 2 * size), 32_000)


def _size(num_tokens: int, vocabulary: int, length: int, flops_per_s: float) -> tuple[int, int, int]:
    """The largest model that corpus and machine support in one trial."""
    chosen = _SIZES[0]
    for size in _SIZES[1:]:
        num_parameters, flops = _cost(size[0], size[1], vocabulary, length)
        tokens = min(flops_per_s * _SECONDS_A_TRIAL / flops, 4 * num_tokens)
        # A trial separates settings long before the 20 tokens per parameter of a full training.
        if tokens * 10 >= num_parameters:
            chosen = size
    return chosen


def _cost(layers: int, width: int, vocabulary: int, length: int) -> tuple[int, float]:
    """Number of parameters, and floating-point operations per training token."""
    shape = ModelConfig(layers=layers, width=width, heads=max(1, width // 64), sequence_length=length)
    in_layers = shape.layers * (12 * shape.width**2)
    return in_layers + vocabulary * width, 6.0 * (in_layers + 0.15 * vocabulary * width)


def _rounded(number: float) -> int:
    unit: int = 10 ** max(3, math.floor(math.log10(max(number, 1))) - 1)
    return max(20_000, round(number / unit) * unit)


def _in_words(num_tokens: int) -> str:
    return f"{num_tokens / 1e6:.3g}M" if num_tokens >= 10**6 else f"{round(num_tokens / 1000)}k"


def _name_of(path: str) -> str:
    path = path.partition("?")[0] if "://" in path else path  # The query of a URL is no name, and may hold a secret.
    parts = [part for part in path.split("/") if part and not set(part) & set("*?[")]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1].split(".")[0] if parts else "").strip("-._")
    return stem[:40] or "sweep"


def _quoted(text: str) -> str:
    """A name from outside as a YAML string: it adds no settings, and reads back as the same string."""
    if re.fullmatch(r"[\w.+/~-]+", text) and yaml.safe_load(f"[{text}]") == [text]:
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).rstrip("\n")
