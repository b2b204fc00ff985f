"""Trials that the user wants trained again: by name, by failure, or all that were given up."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_pipeline.schema.user_errors import InputFault
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord

FAILED, GIVEN_UP = "failed", "given-up"
_NAME = re.compile(r"trial-\d{4,}")
_NAMES_SHOWN = 20


class RetryError(InputFault):
    """`--retry` names what cannot be trained again."""


@dataclass(frozen=True)
class Retried:
    """The chosen trials of a sweep, and the reasons why others are left as they are."""

    records: tuple[TrialRecord, ...]
    """By number; each has ended without a result of its own."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RetryRequest:
    """The values of `--retry`."""

    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [one for one in self.values if one not in (FAILED, GIVEN_UP) and not _NAME.fullmatch(one)]
        if unknown:
            raise RetryError(
                f"--retry {', '.join(unknown)}: a value is {FAILED} (trials that ended with an error), {GIVEN_UP} "
                "(these, and trials that diverged or did not fit in memory) or the name of a trial (trial-0007). "
                "Repeat the option for several."
            )

    def chosen(self, records: Sequence[TrialRecord]) -> Retried:
        """The trials to train again.

        Args:
            records: All trials of the sweep.

        Raises:
            RetryError: A name is no trial of the sweep, or one whose training belongs to another trial; all such names
                are listed.
        """
        by_name = {record.name: record for record in records}
        named = [one for one in dict.fromkeys(self.values) if _NAME.fullmatch(one)]
        faults = list(_faults(named, by_name))
        if faults:
            raise RetryError("\n".join(faults))
        notes = [
            f"{one}: {by_name[one].state} is nothing to retry"
            for one in named
            if by_name[one].is_done and not _is_given_up(by_name[one])
        ]
        notes += [f"{one} is unfinished; the sweep continues it" for one in named if not by_name[one].is_done]
        numbers = {by_name[one].number for one in named if _is_given_up(by_name[one])}
        for group, outcomes in ((FAILED, (Outcome.FAILED,)), (GIVEN_UP, Outcome.given_up())):
            found = [r for r in records if group in self.values and r.outcome in outcomes and r.twin_of is None]
            numbers |= {record.number for record in found if not record.taken_over_from}
            notes += [_of_another_sweep(record) for record in found if record.taken_over_from]
            if group in self.values and not found:
                notes.append(f"no trial is {' or '.join(outcomes)}")
        chosen = tuple(record for record in records if record.number in numbers)
        return Retried(chosen, tuple(dict.fromkeys(notes)))


NO_RETRY = RetryRequest()


def _is_given_up(record: TrialRecord) -> bool:
    return record.outcome in Outcome.given_up()


def _faults(named: Sequence[str], by_name: dict[str, TrialRecord]) -> Iterator[str]:
    missing = [one for one in named if one not in by_name]
    if missing:
        names = sorted(by_name)
        num_more = len(names) - _NAMES_SHOWN
        known = ", ".join(names[:_NAMES_SHOWN]) + (f" and {num_more} more" if num_more > 0 else "")
        yield f"--retry {', '.join(missing)}: no such trial. Trials of this sweep: {known or 'none yet'}."
    for name in named:
        record = by_name.get(name)
        if record is None:
            continue
        if record.twin_of is not None:
            of = f"trial-{record.twin_of:04d}"
            yield f"--retry {name}: it is not trained itself and takes the loss of {of}. Retry {of}."
        elif record.taken_over_from and _is_given_up(record):
            yield f"--retry {name}: {_of_another_sweep(record)}. Retry it there."


def _of_another_sweep(record: TrialRecord) -> str:
    return f"{record.name} is {record.taken_over_from} of an earlier sweep and is not trained here"
