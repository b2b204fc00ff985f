"""MLflow tracking: one parent run per sweep, one child run per trial, metrics on the token axis.

Tags identify a run by its sweep and trial number, so a resumed sweep adds to the existing runs. MLflow only mirrors the
trial folders: an unavailable server stops nothing, and later receives the missed records from these folders.
"""

import shutil
import tempfile
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import DatasetInput, Metric, Param

from data_pipeline.schema.redaction import redact_url
from sweeps.analysis.result_tables import calibration, memory_counts
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import MAP_FILE
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import RefusedProposal, TrialRecord, TrialStore
from sweeps.tracking.final_values import FINAL_LOSS, STATUS
from sweeps.tracking.mlflow_model import ARTIFACT, example_of, register, save_model
from sweeps.tracking.mlflow_runs import run_writer
from sweeps.tracking.mlflow_store import MlflowStore
from sweeps.tracking.outbox import RETRY_S, Outbox
from sweeps.tracking.run_changes import RunChange
from sweeps.tracking.run_contents import (
    as_metrics,
    as_ms,
    as_params,
    as_tags,
    final_metrics,
    final_tags,
    now_ms,
    report_metrics,
)

_THE_END = "the end of the sweep"
"""Key in the outbox; the other keys are trial numbers."""
_ATTEMPT = "pretune.attempt"
"""Tag of the run of a trial that `--retry` trains again: 2, 3, .."""


@dataclass
class _Unsent:
    """Records of one trial that are still to be sent to MLflow."""

    record: TrialRecord
    reports: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class _End:
    status: SweepStatus
    records: Sequence[TrialRecord]
    folder: Path
    refused: Sequence[RefusedProposal]


class Tracking:
    """The MLflow runs of one sweep."""

    def __init__(self, results_folder: Path, *, say: Callable[[str], None], retry_s: float = RETRY_S) -> None:
        """Open the store; an unusable one fails here and not after hours of training.

        Args:
            say: Called with a line when the store becomes unavailable, and when it is back.
            retry_s: Pause before an unavailable store is tried again.

        Raises:
            TrackingError: The store does not answer or cannot be written.
        """
        self._store = MlflowStore(results_folder, say=say)
        self._client, self._experiment_id = self._store.client, self._store.experiment_id
        self._writer = run_writer(self._client, self._experiment_id)
        self.address = redact_url(self._store.uri)
        """Address of the store for records, without secrets."""
        self._say, self._retry_s = say, retry_s
        self._parent_id = ""
        self._runs: dict[int, str] = {}
        self._described: set[int] = set()
        """Trials whose runs have their settings and data sets already."""
        self._maybe_made: set[int] = set()
        """Trials whose runs the store may have created although the request failed."""
        self._lock = threading.Lock()
        self._unsent: dict[int, _Unsent] = {}
        self._shown_running: set[int] = set()
        self._end: _End | None = None
        self._outbox: Outbox | None = None
        self.is_complete = False
        """After `start`: the sweep is finished and all its runs are complete in the store."""
        self.not_taken = ""
        """After `finish`: records that the store did not accept, as text; empty if it accepted all."""
        self.model_uri = ""
        """After `finish`: the winner in the model registry, e.g. `models:/traffic-mlm/1`; empty without one."""

    def start(
        self,
        *,
        name: str,
        identity: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        store: TrialStore,
        source: Mapping[str, str] | None = None,
        datasets: Sequence[DatasetInput] = (),
    ) -> None:
        """Find or create the parent run, and send the records of the trial folders that MLflow misses.

        Args:
            params: Settings that all trials share; the parent run gets them, so children show only the differences.
            source: Tags with code and command, for the parent and every trial that starts from now on.
            datasets: Data sets that the parent and every trial read.

        Raises:
            TrackingError: The store no longer answers.
        """
        self._name, self._identity = name, identity
        self._source, self._datasets = dict(source or {}), list(datasets)
        with self._store.explained():
            found = self._find(f"tags.`pretune.sweep` = '{identity}' and tags.`pretune.kind` = 'sweep'")
            self._parent_id = found[0].info.run_id if found else self._create(name)
            self._log(self._parent_id, params=params, tags={**self._source, **tags})
            self._log_datasets(self._parent_id)
            records = store.load_all()
            outcomes = self._known_outcomes({record.number: record for record in records})
            # MLflow may miss reports of a running trial; a run that has ended there is complete.
            missed = [r for r in records if r.outcome is None or outcomes.get(r.number) != str(r.outcome)]
            self.is_complete = bool(found) and found[0].info.status == "FINISHED" and not missed
            if found and not self.is_complete:
                self._client.update_run(self._parent_id, status="RUNNING")
        self._outbox = Outbox(
            self._send,
            answers=self._store.answers,
            reason_to_wait=self._store.reason_to_wait,
            say=lambda text: self._say(f"{self._store.name} {text}"),
            retry_s=self._retry_s,
        )
        for record in missed:
            # Send all reports: MLflow keeps a metric with the same token and time once.
            self._unsent[record.number] = _Unsent(record, list(store.reports(record)))
            self._outbox.put(record.number)

    def _known_outcomes(self, records: Mapping[int, TrialRecord]) -> dict[int, str | None]:
        """Outcomes in the store by trial; notes the runs of the trials, and sets those of earlier attempts aside.

        Args:
            records: By trial number.
        """
        outcomes: dict[int, str | None] = {}
        earlier: list[Any] = []
        for run in self._find(self._children()):
            number = int(run.data.tags["pretune.trial"])
            record = records.get(number)
            if record is not None and _attempt_of(run) <= record.earlier_attempts:
                earlier.append(run)
                continue
            self._runs[number] = run.info.run_id
            if run.data.params:
                self._described.add(number)
            if run.info.status != "RUNNING":
                outcomes[number] = run.data.tags.get("pretune.outcome")
        for run in earlier:
            number, attempt = int(run.data.tags["pretune.trial"]), _attempt_of(run)
            if number not in self._runs:
                tags = {name: value for name, value in self._tags_of_new(records[number]).items() if value}
                made = self._client.create_run(self._experiment_id, run_name=records[number].name, tags=tags)
                self._runs[number] = str(made.info.run_id)
            # MLflow deletes no metrics: the curve of an earlier attempt stays in a run of its own, below the trial's.
            moved = {"pretune.kind": "attempt", "mlflow.parentRunId": self._runs[number]}
            self._client.log_batch(run.info.run_id, tags=as_tags(moved))
            self._client.update_run(run.info.run_id, name=f"{records[number].name} attempt {attempt}")
        return outcomes

    @property
    def parent_id(self) -> str:
        """Run id of the sweep."""
        return self._parent_id

    def on_event(self, event: TrialEvent, record: TrialRecord, report: dict[str, float] | None) -> None:
        """A ledger listener. Never waits for the store, never fails."""
        assert self._outbox is not None, "start() comes first"
        with self._lock:
            unsent = self._unsent.setdefault(record.number, _Unsent(record))
            unsent.record = record
            if report is not None:
                unsent.reports.append(report)
        # Starts and ends are sent at once; reports are collected and sent together.
        self._outbox.put(record.number, can_wait=event is TrialEvent.REPORT)

    def finish(
        self,
        *,
        status: SweepStatus,
        records: Sequence[TrialRecord],
        folder: Path,
        refused: Sequence[RefusedProposal] = (),
    ) -> None:
        """Close the parent run with ranking and result files; `not_taken` then lists the missing records.

        Args:
            status: Final status of the sweep.
            records: Best first.
            folder: The sweep's results folder; its files and the winner become artifacts of the parent run.
            refused: Proposals that were never launched; the parent run counts them.
        """
        assert self._outbox is not None, "start() comes first"
        self._end = _End(status, records, folder, refused)
        self._outbox.put(_THE_END)
        missing = self._outbox.close()
        if missing:
            num_trials = len(missing.keys() - {_THE_END})
            what = f"all of {num_trials} trial{'s' if num_trials != 1 else ''}" if num_trials else _THE_END
            reason = next(iter(missing.values()))
            self.not_taken = f"{self._store.name} did not receive {what}: {reason}"

    def _send(self, keys: Sequence[Hashable]) -> None:
        """Bring the runs of trials, or the end of the sweep, up to date. Idempotent."""
        self._store.check_file()
        with self._lock:
            unsent = [self._unsent[key] for key in keys if isinstance(key, int) and key in self._unsent]
            news = [(one, one.record, list(one.reports)) for one in unsent]
        self._write({record.number: self._change(record, reports) for _, record, reports in news})
        for _, record, _ in news:
            self._described.add(record.number)
            (self._shown_running.discard if record.ended_at else self._shown_running.add)(record.number)
        with self._lock:
            for one, record, reports in news:
                del one.reports[: len(reports)]
                if record.ended_at and one.record is record and not one.reports:
                    self._unsent.pop(record.number, None)
        if _THE_END in keys:
            assert self._end is not None
            self._send_end(self._end)

    def _write(self, changes: Mapping[int, RunChange]) -> None:
        """Write changes of trials' runs.

        Args:
            changes: By trial number.
        """
        # The server may create a run and fail before it responds.
        self._maybe_made |= {number for number, change in changes.items() if change.run_id is None}
        try:
            self._writer.write(list(changes.values()))
        finally:
            made = {number: change.run_id for number, change in changes.items() if change.run_id is not None}
            self._runs |= made
            self._maybe_made -= made.keys()

    def _change(self, record: TrialRecord, reports: Sequence[Mapping[str, float]]) -> RunChange:
        """The change that brings a trial's run up to date."""
        run_id = self._run_of(record.number)
        is_described = record.number in self._described
        change = RunChange(
            run_id,
            name=record.name,
            started_ms=as_ms(record.started_at) or now_ms(),
            datasets=() if is_described else self._datasets,
            params={} if is_described else as_params(record.settings),
            metrics=[metric for report in reports for metric in report_metrics(record, report)],
        )
        tags: dict[str, str] = {}
        if run_id is None:
            tags = self._tags_of_new(record)
        if record.ended_at:
            change.metrics = [*change.metrics, *final_metrics(record)]
            tags |= final_tags(record)
            change.status, change.ended_ms = STATUS[record.outcome or Outcome.INTERRUPTED], as_ms(record.ended_at)
        elif record.number not in self._shown_running:
            tags["pretune.outcome"] = change.status = "RUNNING"
        change.tags = {name: value for name, value in tags.items() if value}
        return change

    def _tags_of_new(self, record: TrialRecord) -> dict[str, str]:
        """Tags of a trial's run from its start; an empty value is no tag."""
        tags = self._own_tags("trial") | {"mlflow.parentRunId": self._parent_id}
        tags |= {"pretune.trial": str(record.number), "pretune.chosen_by": str(record.chosen_by), **self._source}
        if record.earlier_attempts:
            tags[_ATTEMPT] = str(record.earlier_attempts + 1)
        return tags | {"pretune.taken_over_from": record.taken_over_from}

    def _send_end(self, end: _End) -> None:
        ranks: dict[int, RunChange] = {}
        for rank, record in enumerate(end.records, start=1):
            metric = Metric("final/rank", float(rank), now_ms(), record.tokens)
            run_id = self._run_of(record.number)
            ranks[record.number] = RunChange(run_id) if run_id else self._change(record, ())
            ranks[record.number].metrics = [*ranks[record.number].metrics, metric]
        self._write(ranks)
        best = end.records[0] if end.records and end.records[0].outcome is Outcome.COMPLETED else None
        if best is not None and best.loss is not None:
            values = {FINAL_LOSS: best.loss} | best.metrics
            # The last step is the value that pages show: an end after a retry must not lie before the end it replaces.
            ends = [one.step for one in self._client.get_metric_history(self._parent_id, FINAL_LOSS)]
            step = max([best.tokens, *ends])
            self._client.log_batch(self._parent_id, metrics=as_metrics(values, step=step, at_ms=now_ms()))
            self._client.set_tag(self._parent_id, "pretune.best_trial", best.name)
        self._client.log_batch(self._parent_id, metrics=as_metrics(_memory_figures(end), step=0, at_ms=now_ms()))
        for name in ("sweep.yaml", "trials.csv", "summary.json", "report.html", "EXPERIMENT.md", MAP_FILE):
            if (end.folder / name).exists() and not (end.folder / name).is_symlink():
                self._client.log_artifact(self._parent_id, str(end.folder / name))
        if best is not None and (end.folder / "best").exists():
            self._log_model(end, best)
        self._client.set_terminated(self._parent_id, "FINISHED" if end.status is SweepStatus.FINISHED else "KILLED")

    def _log_model(self, end: _End, best: TrialRecord) -> None:
        """Log the winner as an MLflow model; a finished sweep also registers it as a version."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / ARTIFACT
            if (end.folder / "best" / "own_model.json").is_file():
                shutil.copytree(end.folder / "best", folder)  # MLflow cannot serve a class without running its code.
            else:
                save_model(end.folder / "best", folder, example=example_of(end.folder))
            self._client.log_artifacts(self._parent_id, str(folder), artifact_path=ARTIFACT)
        if end.status is SweepStatus.FINISHED:
            tags = {"pretune.sweep": self._identity, "pretune.trial": best.name, FINAL_LOSS: str(best.loss)}
            if not best.ranked_by.is_loss:
                tags[best.ranked_by.name] = str(best.score)
            self.model_uri = register(self._client, name=self._name, run_id=self._parent_id, tags=tags)

    def _find(self, query: str) -> list[Any]:
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment_id], query, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def _children(self) -> str:
        return f"tags.`mlflow.parentRunId` = '{self._parent_id}' and tags.`pretune.kind` = 'trial'"

    def _own_tags(self, kind: str) -> dict[str, str]:
        return {"pretune.sweep": self._identity, "pretune.kind": kind}

    def _run_of(self, number: int) -> str | None:
        """Run id of a trial; None if the run does not exist yet."""
        if number in self._maybe_made:
            found = self._find(f"{self._children()} and tags.`pretune.trial` = '{number}'")
            self._maybe_made.discard(number)
            if found:
                self._runs[number] = str(found[0].info.run_id)
        return self._runs.get(number)

    def _create(self, name: str) -> str:
        run = self._client.create_run(self._experiment_id, run_name=name, tags=self._own_tags("sweep"))
        return str(run.info.run_id)

    def _log(self, run_id: str, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Log parameters and tags; the client splits them into requests within MLflow's limits."""
        settings = [Param(name, value) for name, value in as_params(params).items()]
        self._client.log_batch(run_id, params=settings, tags=as_tags(tags))

    def _log_datasets(self, run_id: str) -> None:
        if self._datasets:
            self._client.log_inputs(run_id, self._datasets)


def _attempt_of(run: Any) -> int:
    """Which attempt of its trial a run records, from 1."""
    return int(run.data.tags.get(_ATTEMPT, "1"))


def _memory_figures(end: _End) -> dict[str, float]:
    """Counts of the memory verdicts, and the accuracy of the memory prediction."""
    counts = {verdict.replace(" ", "_"): count for verdict, count in memory_counts(end.records, end.refused).items()}
    return {f"memory/{name}": float(value) for name, value in (calibration(end.records) | counts).items()}
