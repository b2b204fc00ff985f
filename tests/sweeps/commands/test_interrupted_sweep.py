"""Sweeps that lose a process, are interrupted or started twice: nothing is lost, and the same command resumes."""

import os
import signal
import time
from pathlib import Path

import pytest
import transformers

from command import press_ctrl_c, processes_marked, read_until, run, start
from finished_results import check_winner, child_runs, summary_of, sweep_folder
from patience import COMMAND_HANGS_AFTER_S, HANGS_AFTER_S, wait_until
from sweep_examples import TINY
from sweeps.commands.lost_terminal import OUTPUT_LOG
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialStore

pytestmark = pytest.mark.ray

CAUSAL = """\
name: causal
corpus: {builtin: python-docs, holdout: 5%}
tokenizer: {kind: byte-bpe, vocabulary: 1000, special_tokens: minimind}
model: {family: decoder, layers: 1, width: 32, heads: 2, kv_heads: 1, sequence_length: 32}
objective: causal_lm
training: {batch_size: 16, micro_batch_size: 8}
search:
  training.learning_rate: {choice: [1e-3, 3e-3]}
searcher: {method: grid}
early_stopping: {method: none}
budget: {trials: 2, tokens_per_trial: 200k}
resources: {workers_per_trial: 2}
"""


TWO_LANES = f"resources: {{concurrent_trials: {min(2, os.cpu_count() or 1)}}}\n"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One results folder for all sweeps of this module, so that the corpus is prepared once."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.slow
def test_a_sweep_survives_the_loss_of_a_worker_and_of_a_lanes_own_process_and_the_winning_decoder_loads(
    results: Path,
) -> None:
    file = results / "causal.yaml"
    file.write_text(CAUSAL)
    mark = f"causal-{time.time_ns()}"
    process = start("sweep", file, "--results", results, mark=mark)
    read_until(process, "trial-0001   1")  # Its first evaluation.
    workers = [worker for worker in processes_marked(mark) if "RayTrainWorker" in " ".join(worker.cmdline())]
    assert len(workers) == 2, [worker.cmdline() for worker in processes_marked(mark)]
    workers[1].send_signal(signal.SIGKILL)
    read_until(process, "trial-0002   1")
    # With it goes the process of Train that asked for the processors: they must come back, or nothing trains again.
    lanes = [one for one in processes_marked(mark) if "Trainable" in " ".join(one.cmdline())]
    assert len(lanes) == 1, [one.cmdline() for one in processes_marked(mark)]
    lanes[0].send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=COMMAND_HANGS_AFTER_S)
    assert process.returncode == 0, output
    trials = TrialStore(sweep_folder(results, "causal") / "trials")
    records = trials.load_all()
    assert (trials.folder / "trial-0002" / "log.txt").read_text().count("starts: ") == 2
    assert [record.outcome for record in records] == [Outcome.COMPLETED, Outcome.COMPLETED]
    assert [record.interruptions for record in records] == [1, 0]
    check_winner(sweep_folder(results, "causal"), transformers.LlamaForCausalLM)


def test_ctrl_c_ends_in_seconds_leaves_no_process_and_the_same_command_resumes(results: Path) -> None:
    file = results / "cut.yaml"
    text = TINY.replace("name: tiny", "name: cut").replace("trials: 6", "trials: 5")
    # Two lanes at most: on many processors all five trials would end with the first.
    file.write_text(f"{text}{TWO_LANES}early_stopping: {{method: none}}\n")
    mark, started_at = f"cut-{time.time_ns()}", time.monotonic()
    process = start("sweep", file, "--results", results, mark=mark)
    read_until(process, "COMPLETED")
    pressed_at = time.monotonic()
    press_ctrl_c(process)
    output, _ = process.communicate(timeout=HANGS_AFTER_S)
    # Sooner than it has come to its first result, on any machine.
    assert time.monotonic() - pressed_at < pressed_at - started_at
    assert process.returncode == 130, output
    assert f"resume   pretune sweep {file}" in output
    assert "Traceback" not in output
    assert [left.cmdline() for left in processes_marked(mark)] == []
    assert summary_of(results, "cut")["status"] == "interrupted"
    assert "pretune sweep, interrupted." in (sweep_folder(results, "cut") / "report.html").read_text()
    check_that_it_resumes(results, file)


@pytest.mark.slow
def test_killed_driver_leaves_its_results_and_the_same_command_resumes_without_duplicates(results: Path) -> None:
    file = results / "killed.yaml"
    text = TINY.replace("name: tiny", "name: killed").replace("trials: 6", "trials: 5").replace("30k", "100k")
    # Longer trials: some are left to train when the first has ended and the report is written.
    file.write_text(f"{text}{TWO_LANES}")
    mark = f"killed-{time.time_ns()}"
    process = start("sweep", file, "--results", results, mark=mark)
    read_until(process, "COMPLETED")
    wait_until(lambda: any(results.glob("killed-*/report.html")), "no report was written")
    process.kill()
    process.communicate()
    assert summary_of(results, "killed")["status"] == "running"
    assert (sweep_folder(results, "killed") / "trials.csv").is_file()
    # Ray notices that its driver is gone, and takes all of its own with it.
    wait_until(lambda: not processes_marked(mark), lambda: f"{[left.cmdline() for left in processes_marked(mark)]}")
    # Killed as it resumes, with a new trial or one that had started; what is left is no trouble for the one after it.
    killed = start("sweep", file, "--results", results, mark=mark)
    read_until(killed, "trial-")
    killed.kill()
    killed.communicate()
    check_that_it_resumes(results, file)
    assert [left.cmdline() for left in processes_marked(mark)] == []


def check_that_it_resumes(results: Path, file: Path) -> None:
    """The same command ends a broken off sweep of five trials: what was finished is kept, no run stands twice."""
    trials = TrialStore(sweep_folder(results, file.stem) / "trials")
    before = {record.number: record for record in trials.load_all()}
    finished = {number: record for number, record in before.items() if record.is_done}
    assert finished
    code, output = run("sweep", file, "--results", results)
    assert code == 0, output
    after = {record.number: record for record in trials.load_all()}
    assert len(after) == 5
    assert {number: after[number] for number in finished} == finished
    assert {number: after[number].settings for number in before} == {n: r.settings for n, r in before.items()}
    assert summary_of(results, file.stem)["status"] == "finished"
    assert sorted(one.info.run_name for one in child_runs(results, file.stem)) == [
        after[number].name for number in sorted(after)
    ]


def test_a_running_sweep_refuses_another_trains_on_without_a_terminal_and_hears_its_hangup(results: Path) -> None:
    file = results / "twice.yaml"
    # No rungs: the signal may hit while trials wait there, and they would be paused.
    text = TINY.replace("name: tiny", "name: twice").replace("30k", "3M")
    file.write_text(f"{text}{TWO_LANES}early_stopping: {{method: none}}\n")
    mark = f"twice-{time.time_ns()}"
    first = start("sweep", file, "--results", results, mark=mark)
    try:
        read_until(first, "starts")
        code, output = run("sweep", file, "--results", results)
        assert code == 2
        assert f"this sweep is running already (pid {first.pid} on " in output
        assert first.stdout is not None
        first.stdout.close()
        log = results / OUTPUT_LOG
        wait_until(lambda: log.exists() and "holdout loss" in log.read_text(), "the sweep did not train on")
        assert first.poll() is None
    finally:
        # A closed terminal sends it to all processes of the command, Ray's among them.
        os.killpg(first.pid, signal.SIGHUP)
        first.wait(timeout=HANGS_AFTER_S)
    assert first.returncode == 130
    assert f"resume   pretune sweep {file}" in log.read_text()
    assert "Traceback" not in log.read_text()
    summary = summary_of(results, "twice")
    assert summary["status"] == "interrupted"
    assert set(summary["outcomes"]) == {"INTERRUPTED"}
    assert [left.cmdline() for left in processes_marked(mark)] == []
