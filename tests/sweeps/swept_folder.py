"""A results folder as a sweep leaves it behind, made without Ray: records, reports, refusals, trials.csv, summary."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from core.settings.run_config import RunConfig
from data_pipeline.schema.manifest import FileReport, Manifest, RowReport, SplitReport, TokenizerReport
from sweeps.analysis.result_tables import summarize, write_trials_csv
from sweeps.memory_knowledge.frontier_map import FrontierMap, map_frontier
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import MAP_FILE
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import LOSS, ChosenBy, MemoryVerdict, RefusedProposal, TrialRecord, TrialStore
from sweeps.settings.sweep_config import SweepConfig

TOKENS = 2_000_000
LIMIT_BYTES = 1_500 * 2**20
BEGAN_AT = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def example_sweep(**changes: Any) -> SweepConfig:
    """A masked LM with four swept settings."""
    values: dict[str, Any] = {
        "name": "traffic-mlm",
        "purpose": "Which batch size and learning rate suit the traffic corpus in 1.5 GiB of memory?",
        "corpus": {"path": "data/packets.csv", "text": "text"},
        "model": {"layers": 2, "width": 64, "heads": 4, "sequence_length": 128},
        "objective": {"masked_lm": {}},
        "search": {
            "training.learning_rate": {"log_uniform": [1e-4, 1e-2]},
            "training.batch_size": {"choice": [32, 64, 128]},
            "training.micro_batch_size": {"choice": [4, 8, 16, 32, 64]},
            "objective.masked_lm.masking_rate": {"uniform": [0.1, 0.5]},
        },
        "start_with": [{"training.learning_rate": 5e-4, "training.batch_size": 64, "training.micro_batch_size": 8}],
        "budget": {"trials": 18, "tokens_per_trial": TOKENS},
    }
    return SweepConfig.model_validate(values | changes)


def example_records(store: TrialStore, *, num_trials: int = 18, seed: int = 0) -> list[TrialRecord]:
    """Trials of every outcome with curves that fall as losses do, saved with their reports."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(1, num_trials + 1):
        settings = {
            "training.learning_rate": float(10 ** rng.uniform(-4, -2)),
            "training.batch_size": int(rng.choice([32, 64, 128])),
            "training.micro_batch_size": int(rng.choice([4, 8, 16, 32, 64])),
            "objective.masked_lm.masking_rate": float(rng.uniform(0.1, 0.5)),
        }
        if number == 1:
            settings |= {
                "training.learning_rate": 5e-4,
                "training.batch_size": 64,
                "training.micro_batch_size": 8,
            }
            settings.pop("objective.masked_lm.masking_rate")
        records.append(_run(store, number, settings, rng))
    return records


def _run(store: TrialStore, number: int, settings: dict[str, Any], rng: np.random.Generator) -> TrialRecord:
    rate, micro = settings["training.learning_rate"], settings["training.micro_batch_size"]
    begin = BEGAN_AT + timedelta(seconds=41 * ((number - 1) // 2) + number % 2)
    predicted = (200 + 26 * micro) * 2**20
    record = TrialRecord(
        number=number,
        settings=settings,
        chosen_by=ChosenBy.START_WITH if number == 1 else ChosenBy.SEARCH,
        micro_batch_size_asked=micro,
        predicted_peak_memory_bytes=predicted,
        memory_limit_bytes=LIMIT_BYTES,
        started_at=begin.isoformat(timespec="seconds"),
    )
    if predicted > LIMIT_BYTES:
        return _ended(
            store, record, begin + timedelta(seconds=2), outcome=Outcome.INFEASIBLE,
            memory_verdict=MemoryVerdict.RAN_OUT, training_s=1.2, out_of_memory_events=1,
            out_of_memory_micro_batches=(micro,),
            reason="ran out of memory: 64 rows asked for 2.1 GiB of 1.46 GiB in the first backward pass",
        )  # fmt: skip
    if rate > 6e-3:
        record = _trained(store, record, share=0.2, rng=rng)
        reason = f"loss nan at step 41 (learning rate {rate:.3g}); lower training.learning_rate"
        return _ended(store, record, begin + timedelta(seconds=9), outcome=Outcome.DIVERGED, reason=reason)
    if number % 3 == 0:
        record = _trained(store, record, share=1 / 3, rng=rng)
        reason = f"loss {record.loss:.4f} at 666,667 tokens is not among the best 1 of 3 trials there (6.1000 or less)"
        return _ended(store, record, begin + timedelta(seconds=14), outcome=Outcome.STOPPED, reason=reason)
    if number == 13:
        record = _trained(store, record, share=0.5, rng=rng)
        place = 'File "core/training/training_run.py", line 12'
        trace = f"Traceback (most recent call last):\n  {place}\nRuntimeError: <disk> full"
        return _ended(store, record, begin + timedelta(seconds=20), outcome=Outcome.FAILED, reason=trace)
    record = _trained(store, record, share=1.0, rng=rng)
    return _ended(
        store, record, begin + timedelta(seconds=38), outcome=Outcome.COMPLETED, reason="trained all its tokens"
    )


def _trained(store: TrialStore, record: TrialRecord, *, share: float, rng: np.random.Generator) -> TrialRecord:
    rate = record.settings["training.learning_rate"]
    batch = record.settings["training.batch_size"]
    micro = min(record.settings["training.micro_batch_size"], batch)
    speed = 60_000 * micro / (micro + 6) * rng.uniform(0.97, 1.03)
    floor = 4.2 + 0.35 * math.log10(rate / 2e-3) ** 2 + 0.08 * math.log2(batch / 32) + rng.normal(0, 0.02)
    last: dict[str, float] = {}
    num_reports = round(40 * share)
    for index in range(1, num_reports + 1):
        tokens = TOKENS * index / 40
        loss = floor + (11.09 - floor) * math.exp(-6 * tokens / TOKENS)
        step_ms = batch * 128 / speed * 1000
        last = {
            "tokens": float(round(tokens)),
            "step": float(round(tokens / (batch * 128))),
            "epoch": tokens / 1_500_000,
            "training_s": tokens / speed,
            "train/loss_nats_per_token": loss + rng.normal(0, 0.06),
            "train/learning_rate": rate,
            "train/tokens_per_s": speed,
            "micro_batch_size": float(micro),
            "memory/peak_bytes": float(round((190 + 26.5 * micro) * 2**20)),
            "profile/forward_ms": 0.3 * step_ms,
            "profile/backward_ms": 0.58 * step_ms,
            "profile/optimizer_ms": 0.08 * step_ms,
            "profile/data_ms": 0.03 * step_ms,
            "profile/exchange_ms": 0.0,
            "profile/share_of_matmul_rate": 0.3 * micro / (micro + 6),
        }
        if index % 5 == 0 or index == num_reports:
            last |= {
                LOSS: loss + rng.normal(0, 0.01),
                "holdout/perplexity": math.exp(loss),
                "holdout/accuracy": 1 / loss,
                "noise/scale_rows": 9.0 + 20 * index / 40,
            }
        store.append_report(record, last)
    return record.model_copy(
        update={
            "metrics": {name: value for name, value in last.items() if name.startswith("holdout/")},
            "best_loss": last.get(LOSS),
            "tokens": int(last["tokens"]),
            "training_s": last["training_s"],
            "tokens_per_s": last["train/tokens_per_s"],
            "micro_batch_size_used": micro,
            "peak_memory_bytes": int(last["memory/peak_bytes"]),
        }
    )


def _ended(store: TrialStore, record: TrialRecord, at: datetime, **changes: Any) -> TrialRecord:
    record = record.model_copy(update={"ended_at": at.isoformat(timespec="seconds"), **changes})
    store.save(record)
    return record


def write_results(
    folder: Path, records: Sequence[TrialRecord], *, status: SweepStatus = SweepStatus.FINISHED, **more: Any
) -> dict[str, Any]:
    """trials.csv, and the summary that goes with it."""
    write_trials_csv(folder / "trials.csv", records)
    summary = summarize(
        name="traffic-mlm",
        identity="4f1c9be2" * 8,
        status=status,
        records=records,
        refused=TrialStore(folder / "trials").load_refusals(),
        data={"fingerprint": "abc", "folder": str(folder / "prepared"), "vocabulary": 8192, "rows_read": 18_092,
              "rows_kept": 18_091, "rows_rejected": 1, "rejects_by_reason": {"empty text": 1}},
        wall_s=412.3,
    )  # fmt: skip
    return summary | {"model": str(folder / "best")} | more


def refuse_some(store: TrialStore) -> None:
    """Proposals that were never launched."""
    for rate in (1e-3, 2e-3):
        settings = {"training.learning_rate": rate, "training.micro_batch_size": 64}
        reason = "micro-batch 64 needs 1.82 GiB (predicted) of 1.46 GiB"
        store.append_refusal(RefusedProposal(settings=settings, verdict=MemoryVerdict.REFUSED, reason=reason))


def write_frontier(folder: Path, records: Sequence[TrialRecord], *, limit_bytes: int = LIMIT_BYTES) -> FrontierMap:
    """The map of the frontier as a sweep of these records leaves it behind."""
    sweep = example_sweep()
    frontier = MemoryFrontier(limit_bytes, num_workers=1, predict=predicted_bytes, source="traffic-mlm-4f1c9be2")
    for record in records:
        frontier.learn_trial(record, sweep.run_config(record.settings))
    found = map_frontier(sweep, frontier, device="cpu")
    (folder / MAP_FILE).write_text(found.model_dump_json(), encoding="utf-8")
    return found


def predicted_bytes(run: RunConfig) -> int:
    """200 MiB, and for each row 16 MiB and what its predicted tokens take."""
    asked = run.training.micro_batch_size
    assert isinstance(asked, int)
    rows = min(asked, run.training.batch_size)
    return round((200 + rows * (16 + 67 * (run.objective.masking_rate or 1))) * 2**20)


def example_manifest() -> Manifest:
    """What is known of a corpus of one file, two rows of it rejected."""
    split = SplitReport(
        num_documents=17_700, num_tokens=1_500_000, num_text_bytes=6_000_000, num_unknown_tokens=12, content_hash="c",
        blocks=(),
    )  # fmt: skip
    rows = RowReport(
        num_rows=11_719, num_tokens=1_500_000, num_text_bytes=6_000_000, num_padding_tokens=32, num_truncated_tokens=0
    )
    file = FileReport(
        path="data/packets<1>.csv", num_file_bytes=6_100_000, blake2b="b", compression=None, encoding="utf-8",
        format="csv", rows_read=18_092, rows_kept=18_090, rows_rejected=2,
    )  # fmt: skip
    tokenizer = TokenizerReport(
        vocabulary_size=8192, training_s=2.0, num_training_bytes=6_000_000, bytes_per_token=4.0, unknown_rate=8e-6,
        tokens_per_s=1e6, longest_token="ab", longest_token_bytes=2,
    )  # fmt: skip
    sweep = example_sweep()
    return Manifest(
        format_version=1, fingerprint="f" * 16, stream_fingerprint="s" * 16, corpus=sweep.corpus,
        tokenizer=sweep.tokenizer, packing=sweep.packing, versions={}, passed_over=(), files=(file,),
        rows_read=18_092, rows_kept=18_090, rows_rejected=2, rows_duplicate=0, rejects={"empty <text>": 2},
        tokenizer_report=tokenizer, token_dtype="uint16", has_targets=False,
        splits={"train": split, "holdout": split}, rows={"train": rows, "holdout": rows}, seconds={},
    )  # fmt: skip
