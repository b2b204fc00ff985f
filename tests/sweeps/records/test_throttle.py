from hypothesis import given
from hypothesis import strategies as st

from sweeps.records.throttle import Pace


@given(
    pauses=st.lists(st.floats(0.0, 5.0), max_size=200),
    costs=st.lists(st.floats(0.001, 3.0), min_size=200, max_size=200),
)
def test_however_often_it_is_asked_work_takes_no_more_than_its_share_of_the_time(
    pauses: list[float], costs: list[float]
) -> None:
    clock, worked_s, last_s = 0.0, 0.0, 0.0
    pace = Pace(times_as_long=60, clock=lambda: clock)
    assert pace.is_due()
    for pause, cost in zip(pauses, costs, strict=False):
        clock += pause
        if pace.is_due():
            done = pace.start()
            clock += cost
            done()
            worked_s, last_s = worked_s + cost, cost
    # What came last has its pause still before it. Sums of floats are off by rounding.
    assert worked_s - last_s <= clock / 60 + 1e-9
