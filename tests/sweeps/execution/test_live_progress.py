"""What `pretune sweep` shows while it runs: a live table on a terminal, a line an event elsewhere."""

import fcntl
import io
import math
import os
import pty
import re
import signal
import struct
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console

from sweep_examples import record
from sweeps.execution.live_progress import Progress
from sweeps.execution.live_view import SweepNow, live_view
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import LOSS, TrialRecord

MEMORY = {"memory_limit_bytes": 40 * 2**20, "micro_batch_size_used": 16}
RECORDS = [
    *(record(number, Outcome.COMPLETED, 9.0 - number, tokens=1000) for number in range(1, 7)),
    record(7, None, 6.5, tokens=500, peak_memory_bytes=30 * 2**20, predicted_peak_memory_bytes=32 * 2**20, **MEMORY),
    record(8, Outcome.INFEASIBLE, out_of_memory_micro_batches=(64,), reason="ran out of memory"),
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
    last = table[table.rindex("rank ") : table.rindex("best ")]
    assert re.findall(r"trial-\d{4}", last) == ["trial-0006", "trial-0005", "trial-0004", "trial-0003", "trial-0002"]


def test_the_live_table_shows_what_fits_the_speed_and_the_time_left(drawn: tuple[str, float]) -> None:
    table, seconds = drawn
    assert "micro-batch 16 has the highest peak, 30.00 MiB of 40.00 MiB   micro-batch 64 ran out of memory" in table
    # Of ten trials of 1,000 tokens six are done, one is half done and one did not count: 3,500 tokens at 100 a second.
    found = re.findall(r"100 tokens/s   (\d+):(\d\d) elapsed   at most 0:35 left", table)
    assert 1 <= 60 * int(found[-1][0]) + int(found[-1][1]) <= math.ceil(seconds)


def test_the_view_has_the_running_trials_with_memory_now_and_as_predicted(table: str) -> None:
    last = table[table.rindex("running ") :].splitlines()
    assert last[0].split() == ["running", "share", "loss", "tokens", "/s", "memory", "now", "predicted", "limit"]
    assert last[1].split() == ["trial-0007", "50%", "6.5000", "100", "30.00", "MiB", "32.00", "MiB", "40.00", "MiB"]


def test_the_view_names_the_best_with_its_lead_and_what_was_given_up_with_the_reason(table: str) -> None:
    assert "best    trial-0006, holdout loss 3.0000, leads trial-0005 by 1.0000 nats" in table
    assert "gave up trial-0008 INFEASIBLE ran out of memory" in table
    assert re.search(r"sweep    65% of at most 10,000 tokens   100 tokens/s", table)


def test_the_time_left_is_that_of_the_tokens_that_early_stopping_is_expected_to_leave() -> None:
    records = [record(1, Outcome.STOPPED, 7.0, tokens=300), record(2, None, 6.0, tokens=500)]
    now = SweepNow(
        records, tokens_per_trial=1000, most_tokens=4000, expected_tokens=2000.0, rate=10.0,
        reports={2: {"train/tokens_per_s": 20.0}},
    )  # fmt: skip
    assert now.tokens_left == 4000 - 1000 - 500
    assert now.expected_left == 2000 - 800
    assert now.pace().plain == "20 tokens/s   0:00 elapsed   about 2:00 left, at most 4:10"
    probes = replace(now, stopped_count_in_full=False)
    assert probes.tokens_left == 4000 - 800


def test_each_part_of_a_view_of_any_records_fits_the_width_of_the_terminal() -> None:
    for width in (40, 80, 200):
        console = Console(file=io.StringIO(), width=width, force_terminal=True)
        with console.capture() as captured:
            console.print(live_view(SweepNow(RECORDS, tokens_per_trial=1000, most_tokens=10_000)))
        lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", captured.get()).splitlines()
        assert max(map(len, lines)) <= width
    console = Console(file=io.StringIO(), width=80)
    console.print(live_view(SweepNow([])))


SHOWN = """\
import os, signal, sys, time
from rich.console import Console
from sweep_examples import record
from sweeps.execution.live_progress import Progress
from sweeps.execution.signals import terminated_like_interrupted
from sweeps.records.trial_events import TrialEvent
records = [record(1, None, 6.5, tokens=0)]
console = Console()
how = sys.argv[1]
with Progress(console, lambda: records, num_trials=1, tokens_per_trial=1000, num_refused=lambda: 0) as progress:
    with terminated_like_interrupted():
        try:
            print("READY", flush=True)
            for tokens in range(100_000):
                progress.on_event(TrialEvent.REPORT, records[0], {"tokens": tokens, "train/tokens_per_s": 10.0})
                time.sleep(0.001)
                if how == "error" and tokens > 2000:
                    raise RuntimeError("a fault")
        except KeyboardInterrupt:
            pass
print("AFTER", flush=True)
"""


@pytest.mark.long
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "error"])
def test_a_terminal_gets_few_redraws_bears_a_resize_and_has_its_cursor_back_after_any_end(how: str) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-c", SHOWN, how])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    seen, began_at, has_sent = b"", 0.0, False
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # The child has closed its end.
            break
        if not piece:
            break
        seen += piece
        if b"READY" in seen and not began_at:
            began_at = time.monotonic()
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 50, 0, 0))
            os.kill(child, signal.SIGWINCH)
        if began_at and time.monotonic() - began_at > 2 and how != "error" and not has_sent:
            os.kill(child, getattr(signal, how))
            has_sent = True
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - began_at
    os.close(terminal)
    text = seen.decode()
    assert (os.waitstatus_to_exitcode(status) == 0) is (how != "error"), text
    assert ("AFTER" in text) is (how != "error")
    assert text.count("\x1b[?25l") >= 1
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown last"
    frames = text.count("of at most 1,000")
    # A thousand reports a second; the first and the last frame come besides.
    assert 2 <= frames <= 4 * seconds + 2, f"{frames} frames in {seconds:.1f} s"


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
