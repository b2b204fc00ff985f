"""The last words of a sweep on the terminal."""

import io
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from swept_folder import TOKENS, example_sweep, write_results

from sweeps.commands.end_summary import close, print_end
from sweeps.execution.run_sweep import SweepEnd
from sweeps.records.outcomes import Outcome
from sweeps.records.printed_commands import command_line
from sweeps.records.results_folder import SweepFolder
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import LOSS, TrialRecord

RATE = "training.learning_rate"


def last_words(
    results: Path,
    *,
    rates: tuple[float, ...],
    seconds: tuple[float, ...],
    status: SweepStatus = SweepStatus.FINISHED,
    command: str = "pretune sweep file.yaml",
    **more: Any,
) -> list[str]:
    """Lines of a sweep of four trials, the first the best at equal tokens."""
    printed = io.StringIO()
    end = ended(results, rates=rates, seconds=seconds, status=status, **more)
    print_end(end, Console(file=printed, width=160), command=command)
    return printed.getvalue().splitlines()


def ended(
    results: Path,
    *,
    rates: tuple[float, ...] = (1e-3,) * 4,
    seconds: tuple[float, ...] = (100.0,) * 4,
    status: SweepStatus = SweepStatus.FINISHED,
    not_tracked: str = "",
    **more: Any,
) -> SweepEnd:
    """The end of that sweep."""
    sweep = example_sweep(search={RATE: {"log_uniform": [1e-4, 1e-2]}}, start_with=[])
    folder = SweepFolder(results, sweep, "4f1c9be2" * 8)
    folder.create()
    records = [
        TrialRecord(
            number=number,
            settings={RATE: rate},
            outcome=Outcome.COMPLETED,
            metrics={LOSS: 4.0 + 0.01 * number},
            rung_losses={TOKENS // 9: 5.0 + 0.01 * number, TOKENS // 3: 4.5 + 0.01 * number},
            tokens=TOKENS,
            training_s=training_s,
        )
        for number, (rate, training_s) in enumerate(zip(rates, seconds, strict=True), start=1)
    ]
    return SweepEnd(
        folder, status, tuple(records), write_results(folder.path, records, **more), was_done_before=False,
        not_tracked=not_tracked, model_uri="",
    )  # fmt: skip


def test_a_winner_on_the_edge_of_the_space_is_said_with_a_value_beyond(tmp_path: Path) -> None:
    lines = last_words(tmp_path, rates=(9e-3, 3e-3, 1e-3, 2e-4), seconds=(100.0,) * 4)
    (edge,) = [line for line in lines if line.startswith("edge     ")]
    assert f"The best trial has {RATE} 0.009" in edge
    assert "to 0.03 for instance" in edge


def test_rankings_that_disagree_are_said(tmp_path: Path) -> None:
    lines = last_words(tmp_path, rates=(1e-3, 3e-3, 5e-4, 2e-4), seconds=(400.0, 100.0, 100.0, 100.0))
    (ranking,) = [line for line in lines if line.startswith("ranking  ")]
    assert "trial-0002 beats trial-0001, the best at equal tokens" in ranking


def test_a_winner_against_which_nothing_speaks_is_given_without_a_warning(tmp_path: Path) -> None:
    lines = last_words(tmp_path, rates=(1e-3, 3e-3, 5e-4, 2e-4), seconds=(100.0,) * 4)
    assert [line for line in lines if line.startswith(("edge", "ranking"))] == []
    assert any(line.startswith("best     trial-0001") for line in lines)


def test_the_winner_stands_beside_tables_of_token_counts(tmp_path: Path) -> None:
    more = {"rates": (1e-3, 3e-3, 5e-4, 2e-4), "seconds": (100.0,) * 4}
    learnt = last_words(tmp_path / "a", **more, yardsticks={"unigram_nats": 6.6, "bigram_nats": 3.9, "num_counted": 10})
    assert any(line.startswith("tables   6.6000 nats by token frequencies, 3.9000 nats by pairs") for line in learnt)
    assert [line for line in learnt if line.startswith("learnt")] == []
    nothing = last_words(
        tmp_path / "b", **more, yardsticks={"unigram_nats": 4.2, "bigram_nats": None, "num_counted": 10}
    )
    (warning,) = [line for line in nothing if line.startswith("learnt   nothing yet")]
    assert "0.1900 nats below a table of token frequencies" in warning


def test_three_commands_to_try_next_have_the_names_of_this_sweep(tmp_path: Path) -> None:
    lines = last_words(tmp_path, rates=(1e-3, 3e-3, 5e-4, 2e-4), seconds=(100.0,) * 4)
    place = next(index for index, line in enumerate(lines) if line.startswith("next     pretune fill-mask"))
    folder = tmp_path / "traffic-mlm-4f1c9be2"
    assert str(folder) in lines[place]
    assert lines[place + 1 : place + 3] == [
        f"         pretune evaluate {folder}",
        f"         pretune train {folder} --tokens 10x",
    ]
    interrupted = last_words(tmp_path, rates=(1e-3,), seconds=(1.0,), status=SweepStatus.INTERRUPTED)
    assert [line for line in interrupted if line.startswith("next")] == []


def test_the_command_that_resumes_is_shown_without_the_token_of_a_url(tmp_path: Path) -> None:
    command = command_line("sweep", "file.yaml", "--set", "corpus.path=https://host/rows.csv?token=CANARY")
    lines = last_words(
        tmp_path, rates=(1e-3,) * 4, seconds=(100.0,) * 4, status=SweepStatus.INTERRUPTED, command=command
    )
    assert "resume   pretune sweep file.yaml --set 'corpus.path=https://host/rows.csv?token=***'" in lines


def test_records_that_mlflow_lacks_at_the_end_are_said_and_have_an_exit_code(tmp_path: Path) -> None:
    printed = io.StringIO()
    with pytest.raises(typer.Exit) as exit_of:
        close(ended(tmp_path, not_tracked="3 records are not in MLflow"), Console(file=printed, width=160))
    assert exit_of.value.exit_code == 5
    assert "missing  3 records are not in MLflow. To send it later, run the same command: " in printed.getvalue()


def test_a_sweep_with_all_its_results_ends_without_an_exit_code(tmp_path: Path) -> None:
    close(ended(tmp_path), Console(file=io.StringIO(), width=160))
