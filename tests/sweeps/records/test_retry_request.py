"""Which trials `--retry` chooses, and which values it refuses."""

import pytest

from sweep_examples import record
from sweeps.records.outcomes import Outcome
from sweeps.records.retry_request import RetryError, RetryRequest

TRIALS = (
    record(1, Outcome.COMPLETED, 5.0),
    record(2, Outcome.FAILED),
    record(3, Outcome.DIVERGED),
    record(4, Outcome.INFEASIBLE),
    record(5, Outcome.STOPPED, 6.0),
    record(6, Outcome.FAILED, twin_of=2),
    record(7, Outcome.DIVERGED, taken_over_from="tiny-1/trial-0009"),
    record(8, Outcome.INTERRUPTED),
    record(9, None),
)


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (("failed",), [2]),
        (("given-up",), [2, 3, 4]),
        (("trial-0003",), [3]),
        (("trial-0004", "failed", "trial-0002"), [2, 4]),
        ((), []),
    ],
)
def test_a_retry_chooses_each_trial_that_ended_without_a_result_once(
    values: tuple[str, ...], numbers: list[int]
) -> None:
    assert [one.number for one in RetryRequest(values).chosen(TRIALS).records] == numbers


@pytest.mark.parametrize(
    ("value", "note"),
    [
        ("trial-0001", "trial-0001: COMPLETED is nothing to retry"),
        ("trial-0005", "trial-0005: STOPPED is nothing to retry"),
        ("trial-0008", "trial-0008 is unfinished; the sweep continues it"),
        ("trial-0009", "trial-0009 is unfinished; the sweep continues it"),
    ],
)
def test_a_trial_with_a_result_or_without_an_end_is_left_as_it_is_with_a_note(value: str, note: str) -> None:
    found = RetryRequest((value,)).chosen(TRIALS)
    assert (found.records, found.notes) == ((), (note,))


def test_nothing_to_retry_is_a_note_and_no_fault() -> None:
    found = RetryRequest(("failed", "given-up")).chosen(TRIALS[:1])
    assert found.records == ()
    assert found.notes == ("no trial is FAILED", "no trial is INFEASIBLE or DIVERGED or FAILED")


def test_trials_of_an_earlier_sweep_stay_with_it() -> None:
    assert RetryRequest(("given-up",)).chosen(TRIALS).notes == (
        "trial-0007 is tiny-1/trial-0009 of an earlier sweep and is not trained here",
    )
    with pytest.raises(RetryError, match=r"trial-0007 is tiny-1/trial-0009 of an earlier sweep.* Retry it there"):
        RetryRequest(("trial-0007",)).chosen(TRIALS)


def test_all_wrong_names_are_refused_at_once_with_the_known_ones() -> None:
    with pytest.raises(RetryError) as refused:
        RetryRequest(("trial-0099", "failed", "trial-0098", "trial-0006")).chosen(TRIALS)
    first, second = str(refused.value).splitlines()
    assert first.startswith("--retry trial-0099, trial-0098: no such trial. Trials of this sweep: trial-0001, trial-")
    assert first.endswith("trial-0009.")
    assert second == "--retry trial-0006: it is not trained itself and takes the loss of trial-0002. Retry trial-0002."
    with pytest.raises(RetryError, match="none yet"):
        RetryRequest(("trial-0001",)).chosen(())


def test_a_word_that_is_no_group_and_no_name_is_refused_before_anything_is_read() -> None:
    with pytest.raises(RetryError, match=r"--retry faild, 7: a value is failed .*given-up .*trial-0007"):
        RetryRequest(("failed", "faild", "7"))
