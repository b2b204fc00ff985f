"""A worker on another node than the driver, whose disk knows nothing of the sweep yet."""

from pathlib import Path

from sweeps.lanes.lane_worker import trial_log
from sweeps.lanes.mailbox import Assignment


def test_the_first_line_of_a_log_needs_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "sweep" / "trials" / "trial-0001"
    assignment = Assignment(
        number=1,
        run={},
        prepared_folder="",
        trial_folder=str(folder),
        evaluate_at_tokens=(),
        pause=None,
        memory_limit_bytes=None,
        memory_limit_by="counting",
    )
    trial_log(assignment).info("starts")
    assert (folder / "log.txt").read_text().endswith("Z starts\n")
