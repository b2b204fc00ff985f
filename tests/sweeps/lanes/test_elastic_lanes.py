"""Lanes that come and go with nodes: real raylets that join and are stopped while a sweep runs."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.tune.search import Searcher

from command import ROOT
from patience import COMMAND_HANGS_AFTER_S, HANGS_AFTER_S, wait_until
from sweep_examples import TINY
from sweeps.early_stopping.rungs import Rungs
from sweeps.lanes.elastic_lanes import HoldsBack, LaneCount, LetsIdleLanesGo
from sweeps.lanes.lane_planning import plan_lanes
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.settings.sweep_sections import ResourcesConfig


def test_the_searcher_is_asked_only_while_the_cluster_holds_a_further_lane() -> None:
    nodes, said = [{"CPU": 1.0}], list[str]()
    plan = plan_lanes(ResourcesConfig(), num_trials=9, num_cpus=1, num_gpus=0)
    lanes = LaneCount(plan, nodes=lambda: nodes, say=said.append, look_every_s=0)
    searcher = HoldsBack(Proposing(), lanes, clock=lambda: 0.0)
    assert [searcher.suggest(name) for name in "ab"] == [{"number": 1}, None]
    searcher.on_trial_result("a", {})
    nodes.append({"CPU": 2.0})
    assert [searcher.suggest(name) for name in "bc"] == [{"number": 2}, None]
    searcher.on_trial_result("b", {})
    assert [searcher.suggest(name) for name in "cd"] == [{"number": 3}, None]
    nodes.clear()
    for name in "abc":
        searcher.on_trial_complete(name)
    # A trial may wait for a node, but one alone.
    assert [searcher.suggest(name) for name in "de"] == [{"number": 4}, None]
    assert said == [
        "lanes    1 -> 3 at a time: nodes have joined the cluster",
        "lanes    3 -> 1 at a time: nodes have left the cluster",
    ]


def test_on_few_processors_a_lane_starts_when_those_before_it_have_worked_for_as_long_as_they_took_to_start() -> None:
    clock = 0.0
    plan = plan_lanes(ResourcesConfig(), num_trials=9, num_cpus=3, num_gpus=0)
    lanes = LaneCount(plan, nodes=lambda: [{"CPU": 3.0}], say=print, look_every_s=0)
    searcher = HoldsBack(Proposing(), lanes, clock=lambda: clock)
    assert [searcher.suggest(name) for name in "ab"] == [{"number": 1}, None]
    clock = 10.0
    searcher.on_trial_result("a", {})
    # The lane that has started takes the next trial at once; another lane starts later.
    searcher.on_trial_complete("a")
    assert [searcher.suggest(name) for name in "bc"] == [{"number": 2}, None]
    clock = 19.9
    assert searcher.suggest("c") is None
    clock = 20.0
    assert [searcher.suggest(name) for name in "cd"] == [{"number": 3}, None]
    clock = 25.0
    # A trial that ended without a result has started its lane too.
    searcher.on_trial_complete("b")
    searcher.on_trial_complete("c", error=True)
    assert [searcher.suggest(name) for name in "def"] == [{"number": 4}, {"number": 5}, None]


def test_on_many_processors_several_lanes_start_at_once() -> None:
    plan = plan_lanes(ResourcesConfig(), num_trials=20, num_cpus=16, num_gpus=0)
    searcher = HoldsBack(Proposing(), LaneCount(plan, nodes=lambda: [{"CPU": 16.0}], say=print, look_every_s=0))
    assert [searcher.suggest(name) is None for name in "abcde"] == [False] * 4 + [True]
    searcher.on_trial_result("a", {})
    assert searcher.suggest("e") is not None


class Proposing(Searcher):
    """Proposes as often as it is asked, or as many as it may, or until something is the case."""

    def __init__(
        self,
        settings: dict[str, Any] | None = None,
        *,
        most: float = math.inf,
        until: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(metric=None, mode=None)
        self._settings, self._most, self._until = settings or {}, most, until
        self._count = 0

    def suggest(self, trial_id: str) -> Any:
        del trial_id
        if self._count == self._most or self._until():
            return Searcher.FINISHED
        self._count += 1
        return {"number": self._count} | self._settings

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


@pytest.mark.ray
def test_a_lane_that_starts_is_not_ended_when_another_becomes_free(tmp_path: Path) -> None:
    log = tmp_path / "log"

    class SlowToStart(tune.Trainable):  # Defined in here, for Ray's workers cannot import tests.
        def setup(self, config: dict[str, Any]) -> None:
            with Path(config["log"]).open("a") as file:
                file.write(f"{os.getpid()} starts\n")
            time.sleep(3)
            self._log = config["log"]

        def step(self) -> dict[str, Any]:
            time.sleep(0.1)
            with Path(self._log).open("a") as file:
                file.write(f"{os.getpid()} trains\n")
            return {"done": True, "tokens": 1}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return bool(new_config)

    def pids(what: str) -> list[str]:
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [pid for pid, did in lines if did == what]

    def both_have_trained() -> bool:
        return len(set(pids("trains"))) == 2

    plan = plan_lanes(ResourcesConfig(), num_trials=60, num_cpus=2, num_gpus=0)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        lanes = LaneCount(plan, say=print)
        scheduler = LetsIdleLanesGo(Rungs((), 3))
        scheduler.lanes = lanes
        tune.Tuner(
            tune.with_resources(SlowToStart, tune.PlacementGroupFactory([{"memory": 1}])),
            tune_config=tune.TuneConfig(
                # The first lane works for as long as the second takes to start, which is longer on a busy machine.
                search_alg=HoldsBack(Proposing({"log": str(log)}, most=3000, until=both_have_trained), lanes),
                scheduler=scheduler,
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=str(tmp_path),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    finally:
        ray.shutdown()
    assert len(pids("starts")) == plan.count == 2
    assert set(pids("trains")) == set(pids("starts")), "the second lane was ended before it trained anything"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One node with one core."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_joins_brings_a_lane_and_its_loss_costs_a_trial_what_came_after_its_checkpoint(
    cluster: Cluster, tmp_path: Path
) -> None:
    file = tmp_path / "elastic.yaml"
    text = TINY.replace("name: tiny", "name: elastic").replace("trials: 6", "trials: 4").replace("30k", "1500k")
    file.write_text(f"{text}resources: {{checkpoint_every_s: 1}}\nearly_stopping: {{method: none}}\n")
    log = tmp_path / "printed.txt"
    environment = os.environ | {"RAY_ADDRESS": cluster.address, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "sweeps", "sweep", str(file), "--results", str(tmp_path)]
    with log.open("w") as output:
        sweep = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(log, r"trial-0001 .*holdout loss", sweep)
        assert "trial-0002" not in log.read_text()
        node = cluster.add_node(num_cpus=1)
        wait_for(log, r"lanes    1 -> 2 at a time", sweep)
        # Whichever trial runs on the node that joined: the second to start.
        wait_for(log, r"trial-0002 .*holdout loss", sweep)
        before = running(tmp_path)
        assert len(before) == 2
        cluster.remove_node(node, allow_graceful=False)
        wait_for(log, r"lanes    2 -> 1 at a time", sweep)
        sweep.wait(COMMAND_HANGS_AFTER_S)
    finally:
        sweep.send_signal(signal.SIGINT)
        sweep.wait(HANGS_AFTER_S)
    assert sweep.returncode == 0, log.read_text()
    records = load(tmp_path)
    assert [record.outcome for record in records] == [Outcome.COMPLETED] * 4, log.read_text()
    (lost,) = [record for record in records if record.interruptions]
    assert lost.interruptions == 1
    (folder,) = tmp_path.glob("elastic-*/trials")
    parts = (folder / lost.name / "log.txt").read_text().split("starts: ")[1:]
    first, again = ([float(tokens) for tokens in re.findall(r" tokens=([0-9.e+]+)", part)] for part in parts)
    # It went on from a checkpoint: not from the beginning, and not past what it had reported by more than a report.
    assert again[0] > first[0]
    assert sorted(record.name for record in records) == [f"trial-{number:04d}" for number in range(1, 5)]


def load(results: Path) -> list[TrialRecord]:
    (folder,) = results.glob("elastic-*/trials")
    return TrialStore(folder).load_all()


def running(results: Path) -> list[TrialRecord]:
    return [record for record in load(results) if record.started_at and record.outcome is None]


def wait_for(log: Path, pattern: str, process: "subprocess.Popen[bytes]") -> None:
    def is_there() -> bool:
        # Ended first, so its output is complete.
        has_ended = process.poll() is not None
        is_printed = re.search(pattern, log.read_text()) is not None
        assert is_printed or not has_ended, log.read_text()
        return is_printed

    wait_until(is_there, log.read_text)
