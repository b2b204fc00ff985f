"""Wall-clock from the command to a model of a given holdout loss: pretune against Ray Tune as its guides show it.

The same search space, corpus, cores and training code; a third of the space does not fit in the memory budget. Arms:

- pretune: the command, with its defaults (TPE, trunk-and-branch, lanes, memory predicted);
- documented: a Tune function that builds a new TorchTrainer for each trial, OptunaSearch, ASHAScheduler on tokens; a
  trial that runs out of memory is an error;
- random: the same with random search.

Each is a process of its own, and its time counts from its start. It ends at the first evaluation, of a trial that is
trained and not of a branch, at or below the target: the best holdout loss of 24 random settings that fit (found
beforehand, in runs that also give the second table). The time to an easier target, which one in eight of them comes
to, is taken on the way. A peer that takes longer than the cap counts as the cap; once more than half of its seeds have
come to it the median is settled, and the others are not run.

Second table: rank correlation of losses at rungs with final losses over random settings that fit, for cosine stopped on
the way, as with ASHA, and for trunk-and-branch. given up: how much higher than the best final loss is the best one of
the third that goes on from there.

    python tests/benchmarks/time_to_target.py [--quick] [--seeds 5] [--peer-seeds 1] [--cap-s 200] [--settings 24]
        [--peers documented random]

With its defaults, one seed of each peer, it takes a quarter of an hour; with `--peer-seeds 5` up to three times that.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from scipy.stats import spearmanr

from core.distributed.workers import Workers
from core.settings.cooldown_branch import Pause
from core.settings.run_config import RunConfig
from core.training.run_end import RunEnd
from core.training.training_run import run_training
from data_pipeline.preparation.prepare import prepare
from data_pipeline.tokens.token_blocks import PreparedCorpus, open_prepared
from sweeps.lanes.ray_session import connect
from sweeps.planning.sweep_plan import SweepPlan, plan_sweep
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import LOSS, TrialStore
from sweeps.search_space.distribution import Distribution
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, load_sweep_file

TRAFFIC = Path(__file__).parents[3] / "shared/data/traffic_ndpi/packets.csv"
TRIALS = 60
TOKENS = 200_000
REDUCTION = 3
INFEASIBLE_SHARE = 1 / 3
HARD, EASY = "best", "one_in_eight"
TARGET_SHARES = {HARD: 0.0, EASY: 1 / 8}
SPACE: dict[str, dict[str, list[Any]]] = {
    "training.learning_rate": {"log_uniform": [1e-4, 1e-1]},
    "training.batch_size": {"choice": [8, 16, 32]},
    "training.micro_batch_size": {"choice": [4, 8, 16, 32]},
    "model.width": {"choice": [64, 96, 128]},
}
PEERS = ("documented", "random")


@dataclass(frozen=True)
class Search:
    """One search of one arm."""

    to_target_s: dict[str, float]
    """By target; the cap, or the end of the search, where it was not reached."""
    is_reached: dict[str, bool]
    launches: int
    wasted_share: float
    """Of the time of trials, in those that did not fit in memory."""


@dataclass(frozen=True)
class RungSays:
    """What losses at a rung say of the final ones."""

    correlation: float
    """Spearman's, over the settings."""
    given_up_nats: float
    """Best final loss of the best third at the rung, above the best of all."""


def main() -> None:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a smoke check")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--peer-seeds", type=int, default=1)
    parser.add_argument("--cap-s", type=float, default=200.0)
    parser.add_argument("--settings", type=int, default=24, help="random ones that give the targets; more, harder")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--peer", choices=PEERS, help="used by this script itself: run one search of a peer")
    parser.add_argument("--folder", type=Path, help="with --peer")
    parser.add_argument("--seed", type=int, default=0, help="with --peer")
    parser.add_argument("--targets", type=json.loads, default={}, help="with --peer")
    arguments = parser.parse_args()
    if arguments.peer:
        run_peer(arguments.peer, arguments.folder, arguments.seed, arguments.targets, arguments.cap_s)
        return
    seeds, peer_seeds, cap_s = arguments.seeds, arguments.peer_seeds, arguments.cap_s
    num_random, tokens = arguments.settings, TOKENS
    if arguments.quick:
        seeds, peer_seeds, cap_s, num_random, tokens = 1, 0, 20.0, 6, 20_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = the_sweep(tokens)
        connect()
        data = prepare(sweep.corpus, sweep.tokenizer, sweep.packing, prepared_folder=folder / "prepared")
        ray.shutdown()
        limit_bytes, share = budget(sweep, data)
        sweep = limited(sweep, limit_bytes)
        (folder / "sweep.yaml").write_text(dump_sweep(sweep))
        (folder / "prepared.txt").write_text(str(data.folder))
        began_at = time.perf_counter()
        targets, said = random_runs(sweep, data, num_random)
        print(
            f"{TOKENS if not arguments.quick else tokens:,} tokens a trial; {share:.0%} of the settings do not fit in "
            f"{limit_bytes / 2**20:.1f} MiB; targets in nats per token, from {num_random} random settings in "
            f"{time.perf_counter() - began_at:.0f} s: {', '.join(f'{n} {loss:.4f}' for n, loss in targets.items())}",
            flush=True,
        )
        found: dict[str, list[Search]] = {"pretune": [], "documented": [], "random": []}
        for seed in range(max(seeds, peer_seeds)):
            if seed < seeds:
                found["pretune"].append(pretune(sweep, data, seed, targets, folder / f"pretune-{seed}"))
            for arm in arguments.peers if seed < peer_seeds else ():
                if sum(not one.is_reached[HARD] for one in found[arm]) <= peer_seeds // 2:
                    found[arm].append(peer(arm, seed, targets, cap_s, folder))
            print(
                f"seed {seed}: " + ", ".join(f"{a} {s[-1].to_target_s[HARD]:.0f} s" for a, s in found.items() if s),
                flush=True,
            )
    print_tables(found, said)
    print(json.dumps({"benchmark": "time_to_target", **figures(found, said), "quick": arguments.quick}))


def the_sweep(tokens: int) -> SweepConfig:
    """The space, on packets where they are, else on the English prose that every CPython carries."""
    is_traffic = TRAFFIC.exists()
    corpus = {"path": str(TRAFFIC), "text": "text"} if is_traffic else {"builtin": "python-docs"}
    return SweepConfig.model_validate(
        {
            "name": "time-to-target",
            "corpus": {**corpus, "holdout": 0.01},
            "tokenizer": {"kind": "words", "vocabulary": 4096}
            if is_traffic
            else {"kind": "byte-bpe", "vocabulary": 2000},
            "model": {"layers": 1, "heads": 2, "sequence_length": 64},
            "objective": "masked_lm",
            "training": {"on_oom": "stop"},
            "search": SPACE,
            "early_stopping": {"reduction_factor": REDUCTION},
            "evaluation": {"points": 4},
            "budget": {"trials": TRIALS, "tokens_per_trial": tokens},
        }
    )


def limited(sweep: SweepConfig, limit_bytes: int) -> SweepConfig:
    """The sweep with a memory budget."""
    return sweep.model_copy(update={"resources": sweep.resources.model_copy(update={"memory": limit_bytes})})


def plan_of(sweep: SweepConfig, data: PreparedCorpus) -> SweepPlan:
    return plan_sweep(sweep, vocabulary_size=data.vocabulary.size, num_cpus=os.cpu_count(), num_gpus=0)


def budget(sweep: SweepConfig, data: PreparedCorpus) -> tuple[int, float]:
    """Bytes that leave a third of the space infeasible, in the middle of the widest gap near it; the exact share."""
    plan = plan_of(limited(sweep, 2**40), data)
    axes = [path for path in SPACE if path != "training.learning_rate"]
    peaks = sorted(
        plan.predicted_bytes(sweep.run_config(dict(zip(axes, values, strict=True)))) or 0
        for values in _product([sweep.search[path].extremes() for path in axes])
    )
    third = round(len(peaks) * (1 - INFEASIBLE_SHARE))
    place = max(range(third - 2, third + 3), key=lambda index: peaks[index] / peaks[index - 1])
    return math.isqrt(peaks[place] * peaks[place - 1]), 1 - place / len(peaks)


def _product(axes: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [()] if not axes else [(value, *rest) for value in axes[0] for rest in _product(axes[1:])]


# Random settings that fit: the target, and what losses at rungs say


def random_runs(
    sweep: SweepConfig, data: PreparedCorpus, count: int
) -> tuple[dict[str, float], dict[str, dict[int, RungSays]]]:
    """The targets, and by method and rung what losses there say of final losses."""
    rng = random.Random(0)
    plan = plan_of(sweep, data)
    settings: list[dict[str, Any]] = []
    while len(settings) < count:
        drawn = {path: _draw(rng, distribution) for path, distribution in sweep.search.items()}
        if (plan.predicted_bytes(sweep.run_config(drawn)) or 0) <= plan.memory_bytes:
            settings.append(drawn)
    jobs = [
        (sweep.run_config(one).model_dump_json(), str(data.folder), plan.rungs, plan.memory_bytes) for one in settings
    ]
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(os.cpu_count() or 1, 4)) as pool:
        results = [result for result in pool.map(_both_ways, jobs, chunksize=1) if result is not None]
    finals = sorted(branched[-1] for branched, _ in results)
    targets = {name: finals[max(1, round(len(finals) * share)) - 1] for name, share in TARGET_SHARES.items()}
    said = {
        method: {
            rung: rung_says([r[way][place] for r in results], [r[way][-1] for r in results])
            for place, rung in enumerate(plan.rungs)
        }
        for way, method in enumerate(("trunk-and-branch", "cosine and ASHA"))
    }
    return targets, said


def rung_says(at_rung: Sequence[float], final: Sequence[float]) -> RungSays:
    kept = sorted(zip(at_rung, final, strict=True))[: max(1, len(final) // REDUCTION)]
    return RungSays(float(spearmanr(at_rung, final).statistic), min(loss for _, loss in kept) - min(final))


def _draw(rng: random.Random, distribution: Distribution) -> Any:
    values = distribution.extremes()
    return rng.choice(values) if distribution.kind == "choice" else math.exp(rng.uniform(*map(math.log, values)))


def _both_ways(job: tuple[str, str, tuple[int, ...], int]) -> tuple[list[float], list[float]] | None:
    """Losses at the rungs and at the end: of branches and their trunk, and of a cosine run. None if one diverges."""
    run_json, prepared, rungs, memory_bytes = job
    torch.set_num_threads(1)
    run, data = RunConfig.model_validate_json(run_json), open_prepared(Path(prepared))
    with tempfile.TemporaryDirectory() as folder:
        branched: list[RunEnd] = []
        for pause in (*(Pause(rung, round(run.training.cooldown * rung)) for rung in rungs), None):
            branched.append(_train(run, data, Path(folder) / "trunk", memory_bytes, pause=pause))
        seen: list[float] = []
        cosine = run.with_overrides({"training.schedule": "cosine"})
        end = _train(cosine, data, Path(folder) / "cosine", memory_bytes, points=rungs, seen=seen)
    losses = [one.metrics.get(LOSS, math.inf) for one in branched]
    if end.outcome != "completed" or branched[-1].outcome != "completed" or len(seen) <= len(rungs):
        return None
    return losses, seen


def _train(
    run: RunConfig,
    data: PreparedCorpus,
    folder: Path,
    memory_bytes: int,
    *,
    pause: Pause | None = None,
    points: Sequence[int] = (),
    seen: list[float] | None = None,
) -> RunEnd:
    def report(values: dict[str, float]) -> bool:
        if seen is not None and LOSS in values:
            seen.append(values[LOSS])
        return True

    return run_training(
        run, data, workers=Workers(), folder=folder, report=report, evaluate_at_tokens=points,
        memory_limit_bytes=memory_bytes, checkpoint_every_s=None, report_every_s=1e9, pause=pause,
    )  # fmt: skip


# The arms


def pretune(sweep: SweepConfig, data: PreparedCorpus, seed: int, targets: dict[str, float], folder: Path) -> Search:
    """The command, ended when a line of its output says that the hard target is reached."""
    results = folder / "results"
    results.mkdir(parents=True)
    shutil.copytree(data.folder, results / "prepared" / data.folder.name)
    file = folder / "sweep.yaml"
    seeded = sweep.model_copy(update={"searcher": sweep.searcher.model_copy(update={"seed": seed})})
    file.write_text(dump_sweep(seeded))
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    began_at = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps", "sweep", str(file), "--results", str(results)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
        # Ignored in the background jobs of a shell, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    reached_s: dict[str, float] = {}
    for line in process.stdout:
        loss = re.match(r"trial-\d+ +\d+% +holdout loss ([0-9.]+)$", line.strip())
        if loss and HARD not in reached_s:
            note_reached(reached_s, float(loss[1]), targets, time.perf_counter() - began_at)
            if HARD in reached_s:
                process.send_signal(signal.SIGINT)
    process.wait()
    took_s = time.perf_counter() - began_at
    records = [r for trials in results.glob("*/trials") for r in TrialStore(trials).load_all()]
    wasted = sum(record.spent_s for record in records if record.outcome is Outcome.INFEASIBLE)
    total = sum(record.spent_s for record in records)
    return search_of(reached_s, targets, took_s, len(records), wasted / total if total else 0.0)


def note_reached(reached_s: dict[str, float], loss: float, targets: dict[str, float], at_s: float) -> None:
    """Add when each target was first come to."""
    for name, target in targets.items():
        if loss <= target:
            reached_s.setdefault(name, at_s)


def search_of(
    reached_s: dict[str, float], targets: dict[str, float], took_s: float, launches: int, wasted_share: float
) -> Search:
    """A search from the targets that it reached; the others took all of its time."""
    times = {name: reached_s.get(name, took_s) for name in targets}
    return Search(times, {name: name in reached_s for name in targets}, launches, wasted_share)


def peer(arm: str, seed: int, targets: dict[str, float], cap_s: float, folder: Path) -> Search:
    """One search of a peer, in a process of its own."""
    command = [sys.executable, __file__, "--peer", arm, "--folder", str(folder), "--seed", str(seed)]
    done = subprocess.run(
        [*command, "--targets", json.dumps(targets), "--cap-s", repr(cap_s)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
    )  # fmt: skip
    return Search(**json.loads(done.stdout.strip().splitlines()[-1]))


_BEGAN_AT = time.perf_counter()
"""Of a peer's own process: its imports count, as those of the command do."""


def run_peer(arm: str, folder: Path, seed: int, targets: dict[str, float], cap_s: float) -> None:
    """Tune as its guides show it; prints what it came to as JSON."""
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that ran out has no loss to give
    # With Ray's dashboard, as by default: without it Train never frees the processors of a trial that Tune has stopped.
    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=True, log_to_driver=False)
    sweep = load_sweep_file(folder / "sweep.yaml")
    prepared = (folder / "prepared.txt").read_text()
    plan = plan_of(sweep, open_prepared(Path(prepared)))
    sweep_json, memory_bytes, points = sweep.model_dump_json(), plan.memory_bytes, plan.evaluate_at_tokens
    points = tuple(sorted({*points, *plan.rungs}))

    def train(config: dict[str, Any]) -> None:
        run = SweepConfig.model_validate_json(sweep_json).run_config(config)

        def report(values: dict[str, float]) -> bool:
            ray.train.report(values)
            return True

        end = run_training(
            run, open_prepared(Path(prepared)), workers=Workers(device=ray.train.torch.get_device()),
            folder=Path(tempfile.mkdtemp()), report=report, evaluate_at_tokens=points,
            memory_limit_bytes=memory_bytes, checkpoint_every_s=None, report_every_s=1e9,
        )  # fmt: skip
        if end.outcome == "infeasible":
            raise torch.OutOfMemoryError(end.reason)

    def trial(config: dict[str, Any]) -> None:
        TorchTrainer(
            train,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(
                name=tune.get_context().get_trial_id(),
                storage_path=str(folder / f"{arm}-{seed}-train"),
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    until = UntilTarget(targets, cap_s)
    tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([{"memory": 1}])),
        param_space={path: _as_tune(distribution) for path, distribution in sweep.search.items()},
        tune_config=tune.TuneConfig(
            metric=LOSS,
            mode="min",
            search_alg=OptunaSearch(seed=seed) if arm == "documented" else None,
            scheduler=ASHAScheduler(
                time_attr="tokens", max_t=TOKENS, grace_period=plan.rungs[0], reduction_factor=REDUCTION
            ),
            num_samples=TRIALS,
            max_concurrent_trials=os.cpu_count(),
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder / f"{arm}-{seed}-tune"), stop=until, callbacks=[until], verbose=1
        ),
    ).fit()
    ray.shutdown()
    print("\n" + json.dumps(until.search().__dict__))


class UntilTarget(tune.Stopper, tune.Callback):
    """Ends a search at the hard target or the cap, and adds up what its trials took."""

    def __init__(self, targets: dict[str, float], cap_s: float) -> None:
        self._targets, self._cap_s = targets, cap_s
        self._reached_s: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._lost: set[str] = set()

    def __call__(self, _: str, result: dict[str, Any]) -> bool:
        note_reached(self._reached_s, result.get(LOSS, math.inf), self._targets, time.perf_counter() - _BEGAN_AT)
        return self.stop_all()

    def stop_all(self) -> bool:
        return HARD in self._reached_s or time.perf_counter() - _BEGAN_AT > self._cap_s

    def on_trial_start(self, *_: Any, **told: Any) -> None:
        self._began[told["trial"].trial_id] = time.perf_counter()

    def on_trial_complete(self, *_: Any, **told: Any) -> None:
        name = told["trial"].trial_id
        self._took[name] = time.perf_counter() - self._began[name]

    def on_trial_error(self, *_: Any, **told: Any) -> None:
        self.on_trial_complete(**told)
        self._lost.add(told["trial"].trial_id)

    def search(self) -> Search:
        """What it came to."""
        total = sum(self._took.values())
        wasted = sum(self._took[trial] for trial in self._lost)
        return search_of(
            self._reached_s, self._targets, self._cap_s, len(self._began), wasted / total if total else 0.0
        )


def _as_tune(distribution: Distribution) -> Any:
    values = distribution.extremes()
    return tune.choice(list(values)) if distribution.kind == "choice" else tune.loguniform(*values)


# What came out


def print_tables(found: dict[str, list[Search]], said: dict[str, dict[int, RungSays]]) -> None:
    """Medians over seeds, and the correlations."""
    print(
        f"{'search':>12}{'to best':>12}{'reached':>10}{'to 1 in 8':>12}{'launches':>10}{'wasted':>9}   medians; "
        "wasted: on what does not fit"
    )
    for arm, searches in found.items():
        if searches:
            reached = f"{sum(one.is_reached[HARD] for one in searches)}/{len(searches)}"
            launches = statistics.median(one.launches for one in searches)
            print(
                f"{arm:>12}{median_s(searches, HARD):>10.1f} s{reached:>10}{median_s(searches, EASY):>10.1f} s"
                f"{launches:>10.0f}{statistics.fmean(one.wasted_share for one in searches):>9.1%}"
                f"   {', '.join(f'{one.to_target_s[HARD]:.0f}' for one in searches)} s"
            )
    print("rank correlation of losses at rungs with final losses")
    for method, by_rung in said.items():
        words = (
            f"{s.correlation:.3f} at {r:,} tokens, given up {s.given_up_nats:.4f} nats" for r, s in by_rung.items()
        )
        print(f"{method:>18}: {'; '.join(words)}")


def median_s(searches: Sequence[Search], target: str) -> float:
    """Seconds to a target; those that did not reach it count with all their time."""
    return statistics.median(one.to_target_s[target] for one in searches)


def figures(found: dict[str, list[Search]], said: dict[str, dict[int, RungSays]]) -> dict[str, Any]:
    """For the JSON line."""
    ran = {arm: searches for arm, searches in found.items() if searches}
    branch, cosine = (list(by_rung.values()) for by_rung in said.values())
    return {
        "ratios": {
            **{
                f"seconds_to_{target}_{arm}_over_pretune": round(
                    median_s(ran[arm], target) / median_s(ran["pretune"], target), 2
                )
                for target in TARGET_SHARES
                for arm in PEERS
                if arm in ran
            },
            "first_rung_correlation_over_cosine": round(branch[0].correlation / cosine[0].correlation, 3),
        },
        "searches": {arm: [asdict(one) for one in searches] for arm, searches in ran.items()},
        "rungs": {method: {str(rung): asdict(says) for rung, says in by.items()} for method, by in said.items()},
    }


if __name__ == "__main__":
    main()
