"""Corpus to a token stream in a work folder: survey, tokenizer, blocks. An interrupted preparation resumes there."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_pipeline.files.own_files import fresh
from data_pipeline.files.whole_files import write_whole
from data_pipeline.preparation.duplicates import count_duplicates, find_duplicates
from data_pipeline.preparation.encode import EncodeWork, token_dtype
from data_pipeline.preparation.survey import Survey, holdout_threshold, sampled_texts, survey_parcel
from data_pipeline.reading.corpus import Corpus
from data_pipeline.reading.parcel_tasks import RunParcels, for_each_parcel
from data_pipeline.schema.corpus_config import CorpusError, TokenizerConfig
from data_pipeline.schema.manifest import BlockReport, SplitName, SplitReport, StreamReport, TokenizerReport
from data_pipeline.schema.prepare_progress import OnProgress, PhaseCounter
from data_pipeline.schema.rejects import Reject, check_files, check_rejects
from data_pipeline.tokens.arrow_files import arrow_bytes
from data_pipeline.tokens.token_blocks import read_block, report_block
from data_pipeline.tokens.tokenizer import load_tokenizer, longest_token, train_tokenizer, vocabulary_of

SPLITS: tuple[SplitName, ...] = ("train", "holdout")
_MERGED_BLOCK_BYTES = 8 << 20


def make_stream(
    corpus: Corpus, config: TokenizerConfig, *, work: Path, report: OnProgress, run: RunParcels = for_each_parcel
) -> StreamReport:
    """Write blocks, tokenizer.json and rejects.jsonl into `work`, and report their counts.

    Raises:
        CorpusError: No row is kept, more rows are rejected than allowed, or the holdout would be empty.
    """
    work.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    encode = partial(_encode, corpus, work=work, report=report, run=run)
    # A given tokenizer needs no survey before tokenization, so one reading is enough.
    is_read_once = config.kind == "file" and not corpus.config.drop_duplicates
    if is_read_once:
        with _timed(seconds, "tokenizing"):
            tokenizer, num_training_bytes = _tokenizer(corpus, config, work, 0, report)
            results = encode(tokenizer, threshold=holdout_threshold(corpus.config.holdout), judges=True)
            survey = Survey()
            for result in results:
                survey.add(result["survey"])
    else:
        with _timed(seconds, "judging rows"):
            survey = _survey(corpus, config, work, report, run)
    _write_rejects(work, survey.refuse_files(corpus))
    files = survey.file_reports(corpus)
    check_files(files, corpus.config)
    check_rejects(survey.rejects, survey.rows_read, corpus.config)
    threshold = _threshold(survey, corpus)
    hashes = sorted(work.glob("*.hashes"))
    dropped = find_duplicates(hashes) if corpus.config.drop_duplicates else {}
    if not is_read_once:
        with _timed(seconds, "training the tokenizer"):
            tokenizer, num_training_bytes = _tokenizer(corpus, config, work, threshold, report)
    if not is_read_once or threshold != holdout_threshold(corpus.config.holdout):
        with _timed(seconds, "tokenizing"):
            if is_read_once:
                # The corpus has few texts and all fell into one split; these blocks are useless.
                _forget_blocks(work)
            results = encode(tokenizer, threshold=threshold, dropped=dropped)
    splits = {split: _split_report(work, split, results) for split in SPLITS}
    _check_accounts(work, survey, splits, num_dropped=sum(map(len, dropped.values())))
    return StreamReport(
        files=files,
        rows_read=survey.rows_read,
        rows_kept=survey.rows_kept,
        rows_rejected=survey.rows_rejected,
        rows_duplicate=count_duplicates(hashes),
        rejects=dict(sorted(survey.rejects.items())),
        tokenizer_report=_tokenizer_report(
            tokenizer,
            splits,
            results,
            training_s=seconds.get("training the tokenizer"),
            num_training_bytes=num_training_bytes,
        ),
        token_dtype="uint16" if token_dtype(vocabulary_of(tokenizer).size).itemsize == 2 else "uint32",
        has_targets=corpus.has_dialogues,
        chat_template=corpus.template.source if corpus.has_dialogues else None,
        splits=splits,
        seconds=seconds,
    )


def _survey(corpus: Corpus, config: TokenizerConfig, work: Path, report: OnProgress, run: RunParcels) -> Survey:
    """A separate first reading. It writes rejects, samples and hashes of each parcel into `work`."""
    counter = PhaseCounter(report, "judging rows", total=corpus.num_plain_bytes, unit="bytes")
    wanted = 0.0 if config.kind == "file" else config.training_bytes / max(corpus.num_plain_bytes, 1)
    judge = partial(survey_parcel, corpus=corpus, sample_share=min(1.0, wanted), wants_hashes=True)
    survey = Survey()
    for result in run(corpus, judge):
        survey.add(result)
        for kind, data in result["blobs"].items():
            with open(work / f"{result['name']}.{kind}", "wb", opener=fresh) as file:
                file.write(data)
        counter.add(result["num_bytes"])
    return survey


def _write_rejects(work: Path, refused: list[Reject]) -> None:
    """Write the rejects of all parcels into one file, refused files first."""
    with open(work / "rejects.jsonl", "wb", opener=fresh) as file:
        for reject in refused:
            file.write(json.dumps(reject.as_json(), ensure_ascii=False).encode() + b"\n")
        # Keep these files until the work folder is removed: an interrupted run reads them again.
        for path in sorted(work.glob("*.rejects")):
            file.write(path.read_bytes())


def _check_accounts(work: Path, survey: Survey, splits: dict[SplitName, SplitReport], *, num_dropped: int) -> None:
    """Check that every row read is a document of a block, a removed duplicate or a line of rejects.jsonl.

    Raises:
        CorpusError: It is not: a file had other rows when it was read again.
    """
    by_file = sum(counts["kept"] + counts["rejected"] for counts in survey.files.values())
    with (work / "rejects.jsonl").open("rb") as file:
        num_rejects = sum(1 for _ in file)
    num_documents = sum(split.num_documents for split in splits.values())
    if not survey.rows_read == by_file == num_documents + num_dropped + num_rejects:
        raise CorpusError(
            f"{survey.rows_read} rows read, {by_file} in files, {num_documents} documents, {num_dropped} dropped, "
            f"{num_rejects} in rejects.jsonl: a file of the corpus has changed meanwhile; leave the files as "
            "they are and run the same command again"
        )


def _forget_blocks(work: Path) -> None:
    for pattern in ("*-*-*.arrow", "*-*.json"):
        for path in work.glob(pattern):
            if not path.name.endswith(".judged.json"):
                path.unlink()


def _threshold(survey: Survey, corpus: Corpus) -> int:
    """Holdout threshold, moved for a small corpus so that each split gets at least one text.

    Raises:
        CorpusError: The corpus has fewer than two distinct texts.
    """
    threshold = holdout_threshold(corpus.config.holdout)
    if corpus.config.holdout == 0:
        return 0
    if survey.lowest_hash == survey.highest_hash and survey.rows_kept > 1:
        raise CorpusError(
            f"all {survey.rows_kept:,} documents of the corpus are the same text, and a holdout needs a second one. "
            "Look whether corpus.text names the column with the texts."
        )
    if survey.lowest_hash == survey.highest_hash:
        raise CorpusError(
            f"the corpus has one document only ({survey.num_text_bytes:,} bytes), and a holdout needs a second one. "
            "Divide the text into documents, with corpus.documents: lines or paragraphs."
        )
    if threshold <= survey.lowest_hash:
        return survey.lowest_hash + 1
    return min(threshold, survey.highest_hash)


def _tokenizer(
    corpus: Corpus, config: TokenizerConfig, work: Path, threshold: int, report: OnProgress
) -> tuple[Tokenizer, int | None]:
    """The tokenizer, and the bytes of text it was trained on (None if it was loaded)."""
    path, facts = work / "tokenizer.json", work / "tokenizer_training.json"
    num_bytes: int | None = None
    if config.path is not None:
        write_whole(path, Path(config.path).expanduser().read_bytes())
    elif path.is_file() and facts.is_file():
        num_bytes = json.loads(facts.read_text())
    else:
        PhaseCounter(report, "training the tokenizer", total=None, unit="bytes")
        counted = _CountedTexts(
            sampled_texts(
                sorted(work.glob("*.sample")), threshold=threshold, drop_duplicates=corpus.config.drop_duplicates
            )
        )
        trained = train_tokenizer(config, counted)
        num_bytes = counted.num_bytes
        write_whole(facts, json.dumps(num_bytes).encode())
        write_whole(path, trained.to_str(pretty=False).encode())
    for sample in work.glob("*.sample"):
        sample.unlink()
    return load_tokenizer(path), num_bytes


class _CountedTexts:
    """Texts, with a count of the UTF-8 bytes read so far."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self.num_bytes = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.num_bytes += len(text.encode())
            yield text


def _encode(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    work: Path,
    threshold: int,
    report: OnProgress,
    run: RunParcels,
    dropped: dict[str, NDArray[np.int32]] | None = None,
    judges: bool = False,
) -> list[dict[str, Any]]:
    """Counts of each parcel in corpus order; writes the blocks into `work`."""
    counter = PhaseCounter(report, "tokenizing", total=corpus.num_plain_bytes, unit="bytes")
    encode = EncodeWork(
        corpus=corpus,
        tokenizer_json=tokenizer.to_str(pretty=False),
        holdout_threshold=threshold,
        has_targets=corpus.has_dialogues,
        # Tasks on nodes without this disk return their blocks instead.
        folder=work if run is not for_each_parcel or _all_nodes_see(work) else None,
        dropped=dropped or {},
        judges=judges,
    )
    results = []
    for result in run(corpus, encode):
        for name, data in result.pop("blobs").items():
            write_whole(work / name, data)
        counter.add(result["num_bytes"])
        results.append(result)
    return sorted(results, key=lambda result: str(result["name"]))


def _all_nodes_see(work: Path) -> bool:
    # It imports Ray, which a run in this process does without.
    from data_pipeline.preparation.node_copies import all_nodes_see

    return all_nodes_see(work)


def _split_report(work: Path, split: SplitName, results: list[dict[str, Any]]) -> SplitReport:
    facts = [result[split] for result in results]
    return SplitReport(
        num_documents=sum(fact["num_documents"] for fact in facts),
        num_tokens=sum(fact["num_tokens"] for fact in facts),
        num_text_bytes=sum(fact["num_text_bytes"] for fact in facts),
        num_unknown_tokens=sum(fact["num_unknown_tokens"] for fact in facts),
        content_hash=f"{sum(int(fact['content_hash']) for fact in facts) % 2**64:016x}",
        blocks=tuple(_merged_blocks(work, split)),
    )


def _merged_blocks(work: Path, split: SplitName) -> Iterator[BlockReport]:
    """The blocks of a split; small ones are merged, because a holdout has hundreds of them."""
    groups: list[list[Path]] = []
    size = 0
    for path in sorted(work.glob(f"{split}-*-*.arrow")):
        size += path.stat().st_size
        if not groups or size > _MERGED_BLOCK_BYTES:
            groups.append([])
            size = path.stat().st_size
        groups[-1].append(path)
    for number, paths in enumerate(groups):
        if len(paths) == 1:
            yield report_block(paths[0])
            continue
        # Keep the parts until the work folder is removed: an interrupted run merges them again.
        merged = work / f"{split}-{number:05d}.arrow"
        table = pa.Table.from_batches([read_block(path) for path in paths]).combine_chunks()
        write_whole(merged, arrow_bytes(table.to_batches()[0]))
        yield report_block(merged)


def _tokenizer_report(
    tokenizer: Tokenizer,
    splits: dict[SplitName, SplitReport],
    results: list[dict[str, Any]],
    *,
    training_s: float | None,
    num_training_bytes: int | None,
) -> TokenizerReport:
    num_tokens = sum(split.num_tokens for split in splits.values())
    elapsed_s = _covered_s([(result["started_at"], result["stopped_at"]) for result in results])
    text, num_bytes = longest_token(tokenizer)
    return TokenizerReport(
        vocabulary_size=vocabulary_of(tokenizer).size,
        training_s=training_s,
        num_training_bytes=num_training_bytes,
        bytes_per_token=sum(split.num_text_bytes for split in splits.values()) / num_tokens,
        unknown_rate=sum(split.num_unknown_tokens for split in splits.values()) / num_tokens,
        tokens_per_s=num_tokens / max(elapsed_s, 1e-9),
        longest_token=text,
        longest_token_bytes=num_bytes,
    )


def _covered_s(intervals: list[tuple[float, float]]) -> float:
    """Seconds covered by at least one interval; the pause of an interrupted preparation does not count."""
    covered, reached = 0.0, 0.0
    for start, stop in sorted(intervals):
        covered += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return covered


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started_at = time.monotonic()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.monotonic() - started_at
