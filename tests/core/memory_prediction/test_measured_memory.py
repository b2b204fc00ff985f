"""A class that cannot be traced is measured, and the measurement is what a trace would give."""

from dataclasses import replace
from pathlib import Path

from given_classes import permitted, run_of, written

from core.memory_prediction.measured_memory import measured_peak
from core.memory_prediction.memory_trace import trace_steps
from core.memory_prediction.peak_memory import SINGLE_CPU_WORKER, _shape_of, predict_memory

DEPENDS_ON_VALUES = """
class Mine(Base):
    def mix(self, x):
        return x if x.sum() > 1e9 else -x

class Same(Base):
    def mix(self, x):
        return -x
"""


def test_training_for_real_shows_the_traced_bytes(tmp_path: Path) -> None:
    written(tmp_path, DEPENDS_ON_VALUES)
    run = run_of(permitted("mine.py:Same", tmp_path))
    shape = _shape_of(run, 61, micro_batch_size=4, setup=SINGLE_CPU_WORKER)
    assert trace_steps(shape, is_real=True).peak()[0] == trace_steps(shape).peak()[0]


def test_a_class_that_depends_on_values_gets_a_prediction_that_holds(tmp_path: Path) -> None:
    written(tmp_path, DEPENDS_ON_VALUES)
    mine, same = (run_of(permitted(f"mine.py:{name}", tmp_path), batch_size=64) for name in ("Mine", "Same"))
    for rows in (2, 8, 64):
        predicted = predict_memory(mine, 61, micro_batch_size=rows).peak_bytes
        traced = predict_memory(same, 61, micro_batch_size=rows).peak_bytes
        # Mine keeps the sum besides, and counts its gradients beside the activations of a single micro-batch.
        assert traced <= predicted <= 1.05 * traced, rows


def test_rows_beyond_those_measured_cost_as_much_each(tmp_path: Path) -> None:
    written(tmp_path, DEPENDS_ON_VALUES)
    shape = _shape_of(run_of(permitted("mine.py:Mine", tmp_path)), 61, micro_batch_size=4, setup=SINGLE_CPU_WORKER)
    peaks = [measured_peak(replace(shape, micro_batch_size=rows, local_rows=2 * rows))[0] for rows in (16, 32, 64)]
    assert peaks[2] - peaks[1] == 2 * (peaks[1] - peaks[0]) > 0
