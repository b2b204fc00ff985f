import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from patience import HANGS_AFTER_S
from sweeps.memory_knowledge.memory_observations import MemoryObservation, MemoryStore, MemoryStoreError, Remembering
from sweeps.records.throttle import Pace

ROOT = Path(__file__).parents[3]


def seen(number: int, *, sweep: str = "a", micro_batch: int | None = None) -> MemoryObservation:
    return MemoryObservation(
        shape="layers 2",
        micro_batch_size=number if micro_batch is None else micro_batch,
        accumulates=True,
        masking_rate=0.15,
        rows_filled=100,
        predicted_bytes=1000 * (number if micro_batch is None else micro_batch),
        limit_bytes=10_000,
        fits=True,
        trial=f"{sweep}/trial-{number:04d}",
        at=f"2026-01-01T00:{number // 60:02}:{number % 60:02}+00:00",
    )


class CountingStore(MemoryStore):
    """Says how often it has been written."""

    def __init__(self, folder: Path, device_kind: str, *, took: Callable[[], None]) -> None:
        super().__init__(folder, device_kind)
        self._took = took
        self.num_writings = 0

    def add(self, observations: Sequence[MemoryObservation], torch_version: str) -> list[MemoryObservation]:
        self.num_writings += 1
        self._took()
        return super().add(observations, torch_version)


def test_what_one_sweep_adds_another_one_reads(tmp_path: Path) -> None:
    MemoryStore(tmp_path, "NVIDIA H100 80GB HBM3 79 GiB").add([seen(1), seen(2)], "2.13.0")
    MemoryStore(tmp_path, "NVIDIA H100 80GB HBM3 79 GiB").add([seen(3, sweep="b")], "2.13.0")
    assert MemoryStore(tmp_path, "NVIDIA H100 80GB HBM3 79 GiB").load("2.13.0") == [
        seen(1),
        seen(2),
        seen(3, sweep="b"),
    ]
    assert json.loads((tmp_path / "memory" / "NVIDIA-H100-80GB-HBM3-79-GiB.json").read_text())["device"].startswith(
        "NV"
    )


def test_another_kind_of_device_and_another_torch_know_nothing_of_it(tmp_path: Path) -> None:
    MemoryStore(tmp_path, "cpu").add([seen(1)], "2.13.0")
    assert MemoryStore(tmp_path, "T4 15 GiB").load("2.13.0") == []
    assert MemoryStore(tmp_path, "cpu").load("2.14.0") == []
    MemoryStore(tmp_path, "cpu").add([seen(2)], "2.14.0")
    assert MemoryStore(tmp_path, "cpu").load("2.13.0") == [seen(1)]


def test_the_same_seen_again_is_kept_once_with_its_last_time(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path, "cpu")
    for number in (1, 3, 2):
        store.add([seen(number, micro_batch=4)], "2.13.0")
    assert store.load("2.13.0") == [seen(3, micro_batch=4)]


def test_sweeps_that_run_at_the_same_time_lose_nothing_of_each_others(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/sweeps', 'tests/sweeps/memory_knowledge']\n"
        "from pathlib import Path; from test_memory_observations import MemoryStore, seen\n"
        "sweep, first = sys.argv[2], int(sys.argv[3])\n"
        "for number in range(first, first + 40):\n"
        "    MemoryStore(Path(sys.argv[1]), 'cpu').add([seen(number, sweep=sweep)], '2.13.0')\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), sweep, str(first)], cwd=ROOT)
        for sweep, first in (("a", 1), ("b", 41))
    ]
    assert [writer.wait(timeout=HANGS_AFTER_S) for writer in writers] == [0, 0]
    kept = MemoryStore(tmp_path, "cpu").load("2.13.0")
    assert [one.micro_batch_size for one in kept] == list(range(1, 81))
    assert sorted(path.name for path in (tmp_path / "memory").iterdir()) == ["cpu.json", "cpu.lock"]


def test_a_thousand_trials_that_fit_write_the_file_a_few_times_and_in_the_end_all_of_them_stand_in_it(
    tmp_path: Path,
) -> None:
    clock = 0.0
    learnt: list[MemoryObservation] = []
    store = CountingStore(tmp_path, "cpu", took=lambda: advance(0.5))

    def advance(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    pace = Pace(times_as_long=60, clock=lambda: clock)
    remembering = Remembering(store, "2.13.0", learn=learnt.extend, pace=pace)
    for number in range(1, 1001):
        advance(1.0)
        remembering.add([seen(number)])
    # Half a second of writing, then thirty of none.
    assert store.num_writings <= 1 + clock / 30
    remembering.flush()
    assert len(store.load("2.13.0")) == 1000
    assert {one.micro_batch_size for one in learnt} == set(range(1, 1001))


def test_an_out_of_memory_is_written_at_once_with_what_waited(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path, "cpu")
    remembering = Remembering(store, "2.13.0", learn=lambda _: None, pace=Pace(clock=time.monotonic, times_as_long=1e9))
    for number in (1, 2):
        remembering.add([seen(number)])
    assert store.load("2.13.0") == [seen(1)]
    ran_out = seen(3).model_copy(update={"fits": False})
    remembering.add([ran_out])
    assert store.load("2.13.0") == [seen(1), seen(2), ran_out]


@pytest.mark.parametrize("text", ["", "{", '{"format_version": 1}', '{"format_version": 9, "torch": {}}', "[1]"])
def test_a_file_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    store = MemoryStore(tmp_path, "cpu")
    store.path.parent.mkdir()
    store.path.write_text(text)
    with pytest.raises(MemoryStoreError, match=r"memory/cpu.json.*Remove it"):
        store.load("2.13.0")
    with pytest.raises(MemoryStoreError, match="Remove it"):
        store.add([seen(1)], "2.13.0")
    assert store.path.read_text() == text
