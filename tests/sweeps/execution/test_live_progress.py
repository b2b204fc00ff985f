"""What `pretune sweep` shows while it runs: a live table on a terminal, a line an event elsewhere."""

import io
import math
import re
import time
from collections.abc import Sequence

import pytest
from rich.console import Console

from sweep_examples import record
from sweeps.execution.live_progress import Progress
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import LOSS, TrialRecord

MEMORY = {"memory_limit_bytes": 40 * 2**20, "micro_batch_size_used": 16}
RECORDS = [
    *(record(number, Outcome.COMPLETED, 9.0 - number, tokens=1000) for number in range(1, 7)),
    record(7, None, 6.5, tokens=500, peak_memory_bytes=30 * 2**20, **MEMORY),
    record(8, Outcome.INFEASIBLE, out_of_memory_micro_batches=(64,)),
]


def shown(records: Sequence[TrialRecord], *, is_terminal: bool) -> str:
    """What is printed of one report and one end, without the codes of a terminal."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, width=110)
    progress = Progress(console, lambda: records, num_trials=10, tokens_per_trial=1000, num_refused=lambda: 3)
    with progress:
        progress.on_event(TrialEvent.REPORT, records[6], {"tokens": 500.0, "train/tokens_per_s": 100.0, LOSS: 6.5})
        progress.on_event(TrialEvent.ENDED, records[0], None)
        time.sleep(1.2 if is_terminal else 0.0)  # Two redraws a second.
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())


@pytest.fixture(scope="module")
def drawn() -> tuple[str, float]:
    """What a terminal shows, and for how many seconds."""
    began_at = time.monotonic()
    return shown(RECORDS, is_terminal=True), time.monotonic() - began_at


@pytest.fixture(scope="module")
def table(drawn: tuple[str, float]) -> str:
    return drawn[0]


def test_the_live_table_counts_outcomes_and_refusals(table: str) -> None:
    assert "COMPLETED 6  INFEASIBLE 1  running 1  refused before launch 3" in table


def test_the_live_table_shows_the_leading_five_in_order(table: str) -> None:
    last = table[table.rindex("rank ") :]
    assert re.findall(r"trial-\d{4}", last) == ["trial-0006", "trial-0005", "trial-0004", "trial-0003", "trial-0002"]


def test_the_live_table_shows_what_fits_the_speed_and_the_time_left(drawn: tuple[str, float]) -> None:
    table, seconds = drawn
    assert "micro-batch 16 has the highest peak, 30.00 MiB of 40.00 MiB   micro-batch 64 ran out of memory" in table
    # Of ten trials of 1,000 tokens six are done, one is half done and one did not count: 3,500 tokens at 100 a second.
    found = re.findall(r"100 tokens/s   (\d+):(\d\d) elapsed   at most 0:35 left", table)
    assert 1 <= 60 * int(found[-1][0]) + int(found[-1][1]) <= math.ceil(seconds)


def test_piped_an_event_is_a_line_without_colours() -> None:
    lines = [line for line in shown(RECORDS, is_terminal=False).splitlines() if line.startswith("trial-")]
    assert len(lines) == 2
    assert lines[0].startswith("trial-0007   50%        holdout loss 6.5000")
    assert lines[1].startswith("trial-0001  COMPLETED   holdout loss 8.0000")


def test_a_pipe_has_a_line_with_the_time_left_at_each_tenth_of_the_sweep() -> None:
    text = io.StringIO()
    records = [record(1, None, 6.5, tokens=0)]
    progress = Progress(Console(file=text), lambda: records, num_trials=1, tokens_per_trial=1000, num_refused=lambda: 0)
    with progress:
        for tokens in range(0, 1001, 25):
            records[0] = record(1, None, 6.5, tokens=tokens)
            progress.on_event(TrialEvent.REPORT, records[0], {"tokens": tokens, "train/tokens_per_s": 10.0})
    lines = text.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [f"{tenth}%" for tenth in range(10, 101, 10)]
    assert "at most 0:50 left" in lines[4]
