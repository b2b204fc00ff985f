"""Read a corpus and report its contents, without writing files or starting Ray."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from data_pipeline.preparation.survey import Survey, survey_parcel
from data_pipeline.reading.corpus_files import find_files
from data_pipeline.reading.file_inspection import examine_files
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError
from data_pipeline.schema.manifest import FileReport, PassedOver
from data_pipeline.schema.prepare_progress import OnProgress, PhaseCounter
from data_pipeline.schema.rejects import check_files, check_rejects

BYTES_OF_TOKEN = 3.5
"""Of byte-level BPE with some thousand entries, roughly: 2.3 for Chinese to 4.6 for English."""
_SHOWN_OF_A_REASON = 3


@dataclass(frozen=True)
class CheckReport:
    """Counts and rejects of one reading of a corpus."""

    documents: str
    """corpus.documents: the unit of a document in plain text files."""
    files: tuple[FileReport, ...]
    passed_over: tuple[PassedOver, ...]
    rows_read: int
    rows_kept: int
    rows_rejected: int
    rejects: dict[str, int]
    """Number of rejected rows by reason."""
    first_rejects: tuple[dict[str, Any], ...]
    """The first three rejects of each reason, as in rejects.jsonl: file, line, reason, excerpt."""
    num_text_bytes: int
    """UTF-8 bytes of the kept rows."""
    num_held_out: int
    """Kept rows that fall into the holdout."""
    num_repeated: int
    """Kept rows that repeat an earlier text."""
    problem: str | None
    """The error that preparation would raise; None if it would succeed."""


def check(corpus: CorpusConfig, *, on_progress: OnProgress | None = None) -> CheckReport:
    """Read a corpus as preparation would, and count kept and rejected rows.

    Raises:
        CorpusError: The corpus has no file to read.
    """
    report = on_progress or (lambda _: None)
    found = find_files(corpus)
    counter = PhaseCounter(report, "reading files", total=sum(file.num_bytes for file in found.files), unit="bytes")
    files = examine_files(found, corpus, memory=None, on_bytes=counter.add)
    counter = PhaseCounter(report, "judging rows", total=files.num_plain_bytes, unit="bytes")
    survey = Survey()
    shown = _first_of_each_reason([reject.as_json() for reject in survey.refuse_files(files)])
    judge = partial(survey_parcel, corpus=files, sample_share=0.0, wants_hashes=True, looks_closer=True)
    hashes = []
    for result in for_each_parcel_here(files, judge):
        survey.add(result)
        hashes.append(np.frombuffer(result["blobs"]["hashes"], "<u8")[::2].copy())
        rejects = (json.loads(line) for line in result["blobs"]["rejects"].split(b"\n") if line)
        shown = _first_of_each_reason([*shown, *rejects])
        counter.add(result["num_bytes"])
    reports = survey.file_reports(files)
    try:
        check_files(reports, corpus)
        check_rejects(survey.rejects, survey.rows_read, corpus)
        problem = None
    except CorpusError as error:
        problem = str(error)
    return CheckReport(
        documents=corpus.documents,
        files=reports,
        passed_over=files.passed_over,
        rows_read=survey.rows_read,
        rows_kept=survey.rows_kept,
        rows_rejected=survey.rows_rejected,
        rejects=dict(sorted(survey.rejects.items())),
        first_rejects=tuple(shown),
        num_text_bytes=survey.num_text_bytes,
        num_held_out=survey.num_held_out,
        num_repeated=survey.rows_kept - len(np.unique(np.concatenate([np.zeros(0, "<u8"), *hashes]))),
        problem=problem,
    )


def _first_of_each_reason(rejects: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    seen = Counter[str]()
    first = []
    for reject in rejects:
        seen[reject["reason"]] += 1
        if seen[reject["reason"]] <= _SHOWN_OF_A_REASON:
            first.append(reject)
    return first
