"""What counts as spent of a budget of tokens and operations."""

from sweep_examples import record, tiny_sweep
from sweeps.records.outcomes import Outcome
from sweeps.search.sweep_budget import SweepBudget

ENDED = "2026-03-02T09:00:00+00:00"
SPENT = [
    # Two branches of 1,500 and 3,000 tokens, which were thrown away.
    record(1, loss=5.0, ended_at=ENDED, tokens=30_000, branch_tokens=4_500, flops_per_token=10.0),
    # Ran out of memory in the middle, where nobody had predicted it.
    record(2, Outcome.INFEASIBLE, ended_at=ENDED, tokens=12_000, flops_per_token=10.0),
    record(3, Outcome.STOPPED, ended_at=ENDED, tokens=10_000, branch_tokens=1_500, flops_per_token=10.0),
]
ALL = 30_000 + 4_500 + 12_000 + 10_000 + 1_500


def budget(**limits: object) -> SweepBudget:
    sweep = tiny_sweep(*(f"budget.{name}={value}" for name, value in limits.items()))
    return SweepBudget(sweep.budget, elapsed_s=lambda: 0.0)


def test_tokens_of_branches_and_of_trials_that_ran_out_of_memory_are_spent() -> None:
    assert budget().tokens(SPENT) == ALL
    assert budget(tokens=ALL + 30_000).may_start_trial(SPENT)[0] == "yes"
    assert budget(tokens=ALL + 29_999).may_start_trial(SPENT) == (
        "no",
        f"{ALL:,.4g} of {ALL + 29_999:,.4g} tokens are used; one more trial would exceed the limit",
    )


def test_operations_are_counted_like_tokens() -> None:
    assert budget().flops(SPENT) == 10.0 * ALL
    # The next trial is taken to need as many for each token as the dearest so far.
    assert budget(flops=10.0 * (ALL + 30_000)).may_start_trial(SPENT)[0] == "yes"
    assert budget(flops=10.0 * (ALL + 29_999)).may_start_trial(SPENT)[0] == "no"


def test_a_trial_that_waits_is_promoted_only_if_the_budget_has_tokens_for_its_rest_and_all_that_run() -> None:
    waiting = record(4, None, tokens=10_000, branch_tokens=1_500, paused_at=10_000)
    running = record(5, None, tokens=5_000)
    known = [*SPENT, waiting, running]
    wanted = ALL + 11_500 + 5_000 + 20_000 + 25_000
    assert budget(tokens=wanted).may_promote(known, waiting)
    assert not budget(tokens=wanted - 1).may_promote(known, waiting)


def test_one_that_does_not_fit_uses_up_no_trial() -> None:
    assert budget(trials=3).may_start_trial(SPENT)[0] == "yes"
    assert budget(trials=2).may_start_trial(SPENT)[0] == "no"
