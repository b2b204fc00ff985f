"""Retention of checkpoints: a checkpoint is three times the size of its model, and few trials need theirs again."""

from collections.abc import Callable, Collection
from typing import Any

from sweeps.analysis.noise_floor import seed_groups
from sweeps.records.outcomes import Outcome
from sweeps.records.remote_results import ResultsAtUri
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.settings.sweep_config import SweepConfig
from sweeps.trained_models.winner_export import drop_checkpoints


class KeptCheckpoints:
    """Deletes the checkpoints of ended trials that can no longer win.

    Args:
        records: Returns all current records of the sweep.
        at_uri: Remote copy of the results, which drops the same checkpoints.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        store: TrialStore,
        records: Callable[[], Collection[TrialRecord]],
        *,
        at_uri: ResultsAtUri | None,
    ) -> None:
        self._store, self._records, self._at_uri = store, records, at_uri
        self._num_leaders = sweep.repeats.leaders + 1 if sweep.num_repeats else 1
        """Number of leaders that keep checkpoints: repeats may change their order; without repeats only the best."""
        self._beaten: list[TrialRecord] = []
        self._dropped: set[int] = set()
        self._has_looked = False

    def on_event(self, event: TrialEvent, record: TrialRecord, _: Any) -> None:
        """A ledger listener: when a trial ends, delete the checkpoints that are no longer needed."""
        if event is not TrialEvent.ENDED or not record.is_done:
            return
        self.drop_beaten()
        # Delete at the next end: a stopped trial writes its last checkpoint after the order to stop.
        if record.outcome is Outcome.COMPLETED or not self._has_looked:
            self._beaten = self._without_a_chance(self._num_leaders)
            self._has_looked = True
        else:
            self._beaten = [record]  # It does not change the leaders.

    def drop_beaten(self) -> None:
        """Delete the checkpoints of trials that were beaten when the last trial ended."""
        while self._beaten:
            record = self._beaten.pop()
            self._dropped.add(record.number)
            trial_folder = self._store.folder_of(record)
            drop_checkpoints(trial_folder)
            if self._at_uri is not None:
                self._at_uri.drop_checkpoints(trial_folder)

    def drop_all_but_the_winners(self) -> None:
        """Delete all checkpoints but the winner's, once no more training follows."""
        self._beaten = self._without_a_chance(1)
        self.drop_beaten()

    def _without_a_chance(self, num_leaders: int) -> list[TrialRecord]:
        records = list(self._records())
        kept = {group.records[0].number for group in seed_groups(records)[:num_leaders]}
        gone = kept | self._dropped
        return [record for record in records if record.is_done and record.number not in gone]
