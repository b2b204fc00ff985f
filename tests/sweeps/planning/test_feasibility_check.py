import pytest

from sweep_examples import tiny_sweep
from sweeps.planning.feasibility_check import NothingFitsError, check_that_something_fits
from sweeps.planning.sweep_plan import SweepPlan, plan_sweep

pytestmark = pytest.mark.parametrize("precision", ["fp32", "bf16"])


def plan(precision: str, *overrides: str) -> SweepPlan:
    sweep = tiny_sweep(f"training.precision={precision}", *overrides)
    return plan_sweep(sweep, vocabulary_size=1000, num_cpus=2, num_gpus=0)


@pytest.mark.long
def test_a_space_that_is_infeasible_altogether_is_refused_with_the_numbers_and_what_would_fit(precision: str) -> None:
    hopeless = plan(precision, "resources.memory=1200KiB", "search.training.micro_batch_size.choice=[8, 16]")
    with pytest.raises(NothingFitsError) as raised:
        check_that_something_fits(hopeless, hopeless.frontier())
    least = hopeless.predicted_bytes(
        hopeless.sweep.run_config({"training.batch_size": 16, "training.micro_batch_size": 8})
    )
    assert least is not None
    words = str(raised.value)
    assert "no settings of this sweep fit in 1.17 MiB of one worker" in words
    assert "training.micro_batch_size 8" in words
    assert f"needs {least / 2**20:.2f} MiB of 1.17 MiB; fits with micro-batch " in words
    assert words.endswith(f"resources.memory of at least {least / 2**20:.2f} MiB.")


def test_a_space_with_one_corner_that_fits_is_not_refused(precision: str) -> None:
    narrow = plan(precision, "resources.memory=1400KiB")
    check_that_something_fits(narrow, narrow.frontier(), nothing_ran=True)


@pytest.mark.long
def test_a_fixed_micro_batch_that_may_shrink_needs_room_for_one_row(precision: str) -> None:
    space = "search={training.batch_size: {choice: [16, 32]}}"
    fixed = ("training.micro_batch_size=16", space, "resources.memory=1400KiB")
    shrinking = plan(precision, *fixed)
    check_that_something_fits(shrinking, shrinking.frontier())
    stopping = plan(precision, *fixed, "training.on_oom=stop")
    with pytest.raises(NothingFitsError):
        check_that_something_fits(stopping, stopping.frontier())
