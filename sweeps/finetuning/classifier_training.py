"""Fine-tunes an encoder to classify labelled texts: trains runs with several settings and keeps the best one.

Every run uses `core.training.training_run`, as all training does: a step survives running out of memory, a killed run
resumes from its last checkpoint, and the holdout is evaluated after every epoch.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import save_file

from core.distributed.workers import Workers
from core.model_files.checkpoint import MODEL_FILE, best_checkpoint, model_tensors, restore_weights
from core.model_files.huggingface import export_huggingface, why_not_exportable
from core.model_files.initial_weights import fresh_model
from core.models.classifier import Classifier
from core.models.decoder import LlamaDecoder
from core.settings.precision import choose_precision
from core.settings.run_config import RunConfig
from core.step.class_probabilities import class_probabilities
from core.training.training_run import run_training
from data_pipeline.files.own_files import clear, fresh_folder, no_link
from data_pipeline.files.whole_files import write_atomically
from data_pipeline.preparation.labelled_rows import (
    LabelledRows,
    LabelledTexts,
    encode_texts,
    hold_out,
    labelled_corpus,
    read_labelled,
)
from data_pipeline.preparation.survey import hash_texts
from data_pipeline.reading.table_rows import ON_THE_COMMAND_LINE, SettingNames, open_table
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.batches import BatchSource
from data_pipeline.tokens.token_blocks import PreparedCorpus
from sweeps.finetuning.class_metrics import always_the_commonest, measure
from sweeps.finetuning.classifier_results import (
    METRICS_FILE,
    MODEL_FOLDER,
    ClassifierRun,
    FinetuneResult,
    Judged,
    Start,
    best_of,
)
from sweeps.finetuning.finetune_settings import FinetuneSettings
from sweeps.records.results_folder import check_writable
from sweeps.trained_models.trained_model import TrainedModel

_RATE_AT_768 = 5e-5
"""Learning rate for fine-tuning BERT at its width of 768 (arXiv:1810.04805, A.3: 2e-5 to 5e-5)."""
_WARMUP, _WEIGHT_DECAY = 0.06, 0.1
"""RoBERTa's values for fine-tuning with a linear decay (arXiv:1907.11692, table 10)."""
_ROWS_AT_ONCE = 64
_DECIDES_NOTHING = ("memory_bytes", "micro_batch_size", "purpose")
"""Settings that do not change the result of training."""
_LOSS, _ACCURACY, _F1 = "holdout/loss_nats_per_token", "holdout/accuracy", "holdout/macro_f1"


@dataclass(frozen=True)
class FinetunePlan:
    """A fine-tuning before its first step, with all inputs checked."""

    settings: FinetuneSettings
    trained: TrainedModel
    weights_of: str
    table: str
    found: LabelledTexts
    is_held_out: NDArray[np.bool_]
    num_cut: int
    data: PreparedCorpus
    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether the same fine-tuning has finished already."""
        return (self.folder / METRICS_FILE).is_file()


def read_rows(settings: FinetuneSettings, table: str, *, names: SettingNames = ON_THE_COMMAND_LINE) -> LabelledTexts:
    """The labelled rows of a file, folder or glob.

    Args:
        names: Names of the settings for messages.

    Raises:
        CorpusError: The table is invalid, or a column is missing; the message names the remedy.
    """
    opened = open_table(table, text=settings.text, names=names)
    return read_labelled(opened, settings.label, least_rows=settings.least_rows, names=names)


def plan_finetuning(
    trained: TrainedModel,
    settings: FinetuneSettings,
    found: LabelledTexts,
    *,
    weights_of: str,
    table: str,
    results_folder: Path,
    name: str | None = None,
    target: Path | None = None,
    names: SettingNames = ON_THE_COMMAND_LINE,
) -> FinetunePlan:
    """Check that model and rows fit together, and split the rows.

    Args:
        found: The rows from `read_rows`.
        weights_of: The model, as given by the user.
        table: File, folder or glob of the rows, as given by the user.
        name: Name of the fine-tuning. None: derived from table and label.
        target: Output folder. None: one in the results folder, named by the identity of the fine-tuning, so that the
            same command resumes it.
        names: Names of the settings for messages.

    Raises:
        InputFault: An input is invalid; the message names the remedy.
    """
    if isinstance(trained.model, LlamaDecoder):
        raise InputFault(
            f"{weights_of} is a decoder, and {names.label} needs an encoder, which attends to the whole text; give a "
            "model trained with model.family: encoder"
        )
    longest = trained.config.num_positions
    if settings.max_tokens is not None and not 3 <= settings.max_tokens <= longest:
        given = f"{names.max_tokens}{names.before_value}{settings.max_tokens}"
        raise InputFault(f"{given}: is out of range; give 3 to {longest}, which the model accepts")
    is_held_out = hold_out(found.texts, found.labels, settings.holdout, names=names)
    # Models of other libraries may have more embedding rows than the tokenizer has tokens.
    vocabulary = replace(trained.vocabulary, size=trained.model.tokens.num_embeddings)
    encoded = encode_texts(
        found.texts, trained.tokenizer, vocabulary, longest=min(longest, settings.max_tokens or longest)
    )
    data = labelled_corpus(
        found,
        encoded,
        is_held_out,
        vocabulary,
        tokenizer_path=trained.tokenizer_path,
        fingerprint=_fingerprint(found, encoded.tokens, is_held_out),
    )
    identity = _identity(trained, settings, data)
    folder = target or results_folder / f"{name or f'{Path(table).stem}-{settings.label}'}-{identity[:8]}"
    check_writable(folder)
    _claim(folder, identity)
    return FinetunePlan(
        settings, trained, weights_of, table, found, is_held_out, encoded.num_cut, data, folder.absolute()
    )


def train_classifiers(plan: FinetunePlan, console: Console) -> FinetuneResult:
    """Train all runs and keep the model of the best one.

    The lowest holdout loss decides which epoch of a run, and which run, is kept: the loss still changes where accuracy
    and F1 are constant, and it penalises confident mistakes. This choice makes the holdout figures slightly better than
    they would be on fresh rows.

    Raises:
        InputFault: No run completed.
    """
    start = fresh_folder(plan.folder / "start")
    save_file(
        {name: tensor.contiguous() for name, tensor in model_tensors(plan.trained.model).items()}, start / MODEL_FILE
    )
    workers = Workers(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    asked = list(_runs_of(plan, start))
    runs = []
    for number, (run, config) in enumerate(asked, start=1):
        console.print(f"run {number} of {len(asked)}: {run.name}", markup=False, highlight=False)
        runs.append(_train(run, config, plan, workers, console))
    configs = {run.name: config for run, config in asked}
    pretrained = best_of(runs, "pretrained")
    if pretrained is None:
        raise InputFault(f"no run completed; the first one ended with: {runs[0].reason}")
    classifier, judged = _judge(pretrained, configs[pretrained.name], plan, workers)
    scratch = best_of(runs, "from scratch")
    _, judged_scratch = (None, None) if scratch is None else _judge(scratch, configs[scratch.name], plan, workers)
    commonest, majority = always_the_commonest(_labels(plan.data.holdout), _labels(plan.data.train), plan.found.classes)
    return FinetuneResult(
        folder=plan.folder,
        settings=plan.settings,
        weights_of=plan.weights_of,
        table=plan.table,
        found=plan.found,
        is_held_out=plan.is_held_out,
        num_cut=plan.num_cut,
        row_tokens=plan.data.train.sequence_length,
        num_parameters=classifier.num_parameters(),
        runs=tuple(runs),
        pretrained=judged,
        scratch=judged_scratch,
        commonest=commonest,
        majority=majority,
        model=_keep(classifier, configs[pretrained.name], plan),
    )


def drop_checkpoints(folder: Path) -> None:
    """Delete the files that runs need to resume, once all results are written. Runs stay if no model was exported."""
    shutil.rmtree(folder / "start", ignore_errors=True)
    if (folder / MODEL_FOLDER).is_dir():
        shutil.rmtree(folder / "runs", ignore_errors=True)


def _fingerprint(found: LabelledTexts, tokens: tuple[NDArray[Any], ...], is_held_out: NDArray[np.bool_]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    digest.update(hash_texts(found.labels)[0].tobytes() + is_held_out.tobytes())
    for row in tokens:
        digest.update(len(row).to_bytes(4, "little") + row.tobytes())
    return digest.hexdigest()


def _identity(trained: TrainedModel, settings: FinetuneSettings, data: PreparedCorpus) -> str:
    """Hash of everything that determines the result."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model_tensors(trained.model).items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    decides = {k: v for k, v in asdict(settings).items() if k not in _DECIDES_NOTHING}
    digest.update(json.dumps([decides, data.fingerprint], sort_keys=True).encode())
    return digest.hexdigest()


def _claim(folder: Path, identity: str) -> None:
    """Refuse a folder that another fine-tuning has written to."""
    mark = folder / "identity.txt"
    if mark.is_file() and mark.read_text(encoding="utf-8") != identity:
        raise InputFault(
            f"--out {folder}: contains another fine-tuning (model, rows or settings differ); name a new folder"
        )
    if not mark.is_file() and any(folder.iterdir()):
        raise InputFault(f"--out {folder}: exists already and contains other files; name a new folder")
    write_atomically(mark, identity)


def _runs_of(plan: FinetunePlan, start: Path) -> Iterator[tuple[ClassifierRun, RunConfig]]:
    settings, config = plan.settings, plan.trained.config
    rates = settings.learning_rates or (float(f"{_RATE_AT_768 * max(1.0, 768 / config.width):.2g}"),)
    starts: tuple[Start, ...] = ("pretrained", "from scratch") if settings.from_scratch else ("pretrained",)
    model = config.model_copy(
        update={
            "sequence_length": plan.data.train.sequence_length,
            "max_sequence_length": config.num_positions,
            "dropout": settings.dropout,
        }
    )
    combinations = itertools.product(starts, rates, settings.batch_sizes, settings.epochs, settings.seeds)
    for begin, rate, batch_size, epochs, seed in combinations:
        training = {
            "batch_size": batch_size,
            "micro_batch_size": settings.micro_batch_size or "auto",
            "epochs": epochs,
            "initial_weights": str(start) if begin == "pretrained" else None,
            "learning_rate": rate,
            "schedule": "linear",
            "warmup": _WARMUP,
            "weight_decay": _WEIGHT_DECAY,
            "seed": seed,
        }
        run = RunConfig.model_validate(
            {"model": model, "objective": {"classification": {"classes": plan.found.classes}}, "training": training}
        )
        run_of = ClassifierRun(start=begin, learning_rate=rate, batch_size=batch_size, epochs=epochs, seed=seed)
        yield run_of, run


def _train(
    run: ClassifierRun, config: RunConfig, plan: FinetunePlan, workers: Workers, console: Console
) -> ClassifierRun:
    folder = plan.folder / "runs" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    reports = folder / "reports.jsonl"

    def report(values: dict[str, float]) -> bool:
        with open(reports, "a", encoding="utf-8", opener=no_link) as file:
            file.write(json.dumps(values) + "\n")
        if _LOSS in values:
            console.print(
                f"  epoch {values['epoch']:5.2f}   holdout loss {values[_LOSS]:.4f}   accuracy {values[_ACCURACY]:.4f}"
                f"   macro F1 {values[_F1]:.4f}",
                highlight=False,
            )
        return True

    num_tokens = plan.data.train.num_tokens
    end = run_training(
        config,
        plan.data,
        workers=workers,
        folder=folder,
        report=report,
        evaluate_at_tokens=[epoch * num_tokens for epoch in range(1, int(run.epochs) + 1)],
        memory_limit_bytes=plan.settings.memory_bytes,
    )
    if end.outcome != "completed" or end.oom_events:
        console.print(f"  {end.outcome}: {end.reason}", markup=False, highlight=False, soft_wrap=True)
    # A resumed run repeats the reports after its last checkpoint; the last one counts.
    lines = reports.read_text(encoding="utf-8").splitlines() if reports.is_file() else []
    evaluations = {one["tokens"]: one for one in map(json.loads, lines) if _LOSS in one}
    best = min(evaluations.values(), key=lambda one: one[_LOSS], default=None)
    run = replace(
        run, outcome=end.outcome, reason=end.reason, tokens=end.tokens, peak_memory_bytes=end.peak_memory_bytes
    )
    if best is None:
        return run
    return replace(
        run,
        best_epoch=best["epoch"],
        loss=best[_LOSS],
        accuracy=best[_ACCURACY],
        macro_f1=best[_F1],
        training_s=max(one["training_s"] for one in evaluations.values()),
        evaluations=tuple(evaluations[tokens] for tokens in sorted(evaluations)),
    )


def _judge(run: ClassifierRun, config: RunConfig, plan: FinetunePlan, workers: Workers) -> tuple[Classifier, Judged]:
    """The classifier of a run's best epoch, and its metrics on the holdout."""
    checkpoint = best_checkpoint(plan.folder / "runs" / run.name)
    assert checkpoint is not None, f"{run.name} completed without an evaluation"
    without_start = config.with_overrides({"training.initial_weights": None})
    classifier = cast(Classifier, fresh_model(without_start, plan.data, workers.device))
    restore_weights(checkpoint / MODEL_FILE, classifier)
    source = BatchSource(plan.data.holdout, plan.data.vocabulary, masking_rate=None, seed=0, shuffle=False)
    # Training may use bf16, but the kept model is fp32, so measure it in fp32.
    precision = choose_precision("fp32", workers.device)
    probabilities = class_probabilities(classifier, source, rows_at_once=_ROWS_AT_ONCE, precision=precision)
    names = plan.found.classes
    metrics = measure(_labels(plan.data.holdout), probabilities.argmax(-1).numpy(), _labels(plan.data.train), names)
    return classifier, Judged(run, metrics, probabilities)


def _labels(rows: object) -> NDArray[np.int64]:
    assert isinstance(rows, LabelledRows)
    return rows.labels


def _keep(classifier: Classifier, config: RunConfig, plan: FinetunePlan) -> str:
    """Export the model for transformers; returns its folder, or the reason why it cannot be exported."""
    foreign = why_not_exportable(config.model)
    if foreign is not None:
        return f"{foreign} Its weights are in {plan.folder / 'runs'}."
    target = plan.folder / MODEL_FOLDER
    partial = fresh_folder(plan.folder / ".best-partial")
    export_huggingface(
        classifier.cpu(),
        config.model,
        plan.data.tokenizer_path,
        plan.trained.vocabulary,
        partial,
        classes=plan.found.classes,
    )
    clear(target)
    partial.rename(target)
    return str(target)
