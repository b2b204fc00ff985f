"""What running out of memory costs a sweep: Ray Tune as documented, Tune told that such trials are pruned, and pretune.

One space, a third of which does not fit into the memory budget; real training of a small model under that budget; the
same Trainable on one reused actor for all three, so that only the search differs:

    documented  OptunaSearch, ASHAScheduler; a trial that runs out of memory raises, as Tune's guides have it
    pruned      the same, but the trial ends with a result and Optuna is told PRUNED and a broken constraint
    pretune     its searcher, frontier, ledger and scheduler, as a sweep puts them together

    python tests/benchmarks/oom_waste.py [--quick]

Lost is the time from the start of a trial that ran out of memory to the start of the next one: the attempt, and the
actor that Tune starts anew after an error. Of a trial that survived it is the time up to its first report, which is
more than was lost. What pretune spends on predictions is a column of its own: it depends on the number of shapes and
not on the length of the trials, which are far shorter here than anybody's.
"""

import argparse
import json
import logging
import math
import os
import queue
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from core.distributed.workers import Workers
from core.memory.out_of_memory import OomFacts
from core.memory_prediction.peak_memory import _predict
from core.settings.run_config import RunConfig
from core.training.memory_budget import MemoryBudget
from core.training.run_end import RunEnd
from core.training.training_run import run_training
from data_pipeline.preparation.prepare import prepare
from data_pipeline.tokens.token_blocks import PreparedCorpus, open_prepared
from sweeps.early_stopping.rungs import Rungs
from sweeps.early_stopping.token_scheduler import TokenScheduler
from sweeps.execution.tune_run import LedgerCallback
from sweeps.lanes.ray_session import connect
from sweeps.planning.sweep_plan import SweepPlan, plan_sweep
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import LOSS, TrialRecord, TrialStore
from sweeps.search.ledger import Ledger
from sweeps.search.sweep_searcher import SweepSearcher
from sweeps.search_space.distribution import Distribution
from sweeps.settings.sweep_config import SweepConfig

TRIALS = 60
SEEDS = 5
TOKENS = 16_000
REDUCTION = 3
INFEASIBLE_SHARE = 1 / 3
SPACE: dict[str, dict[str, list[Any]]] = {
    "training.learning_rate": {"log_uniform": [3e-4, 3e-2]},
    "training.batch_size": {"choice": [16, 32, 64]},
    "training.micro_batch_size": {"choice": [4, 8, 16, 32, 64]},
    "model.width": {"choice": [32, 64, 96]},
}
ARMS = ("documented", "pruned", "pretune")


@dataclass(frozen=True)
class Attempt:
    """One launch of a trial, as the process that trained it saw it."""

    began_at: float
    first_report_at: float
    ended_at: float
    ran_out: bool
    survived: bool
    loss: float | None
    """Holdout loss of a trial that trained all its tokens."""


@dataclass(frozen=True, slots=True)
class Waste:
    """What one sweep of one arm came to."""

    launches: int
    ran_out: int
    lost_s: float
    total_s: float
    predicting_s: float
    best_loss: float


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few trials: a smoke check")
    arguments = parser.parse_args()
    trials, seeds = (8, 1) if arguments.quick else (TRIALS, SEEDS)
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that ran out has no loss to give
    connect()
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = the_sweep(trials)
        data = prepare(sweep.corpus, sweep.tokenizer, sweep.packing, prepared_folder=folder / "prepared")
        limit_bytes, share = budget(sweep, data)
        print(
            f"{trials} trials of up to {TOKENS:,} tokens, {seeds} seeds; {share:.0%} of the settings do not fit in "
            f"{limit_bytes / 2**20:.2f} MiB",
            flush=True,
        )
        found: dict[str, list[Waste]] = {arm: [] for arm in ARMS}
        for seed in range(seeds):
            # Another order for each seed: what the machine does meanwhile must not favour one of them.
            for arm in random.Random(seed).sample(ARMS, len(ARMS)):
                waste = run_arm(arm, seed, sweep, limit_bytes, data, folder / f"{arm}-{seed}")
                found[arm].append(waste)
                print(f"seed {seed}, {arm}: {waste.ran_out} of {waste.launches} ran out", flush=True)
        print_table(found)
    ray.shutdown()
    print(json.dumps({"benchmark": "oom_waste", **figures(found), "quick": arguments.quick}))


def the_sweep(trials: int) -> SweepConfig:
    """The space, on the English prose that every CPython carries."""
    return SweepConfig.model_validate(
        {
            "name": "oom-waste",
            "corpus": {"builtin": "python-docs", "holdout": 0.01},
            "tokenizer": {"kind": "byte-bpe", "vocabulary": 500},
            "model": {"layers": 1, "heads": 2, "sequence_length": 32},
            "objective": "masked_lm",
            "search": SPACE,
            "early_stopping": {"method": "asha", "reduction_factor": REDUCTION, "run_to_end": 0},
            "evaluation": {"points": 1},
            "budget": {"trials": trials, "tokens_per_trial": TOKENS},
        }
    )


def budget(sweep: SweepConfig, data: PreparedCorpus) -> tuple[int, float]:
    """Bytes that leave a third of the space infeasible, and the exact share.

    By what each configuration is predicted to need, which the counted budget of a CPU bears out to within a percent:
    the limit lies in the middle of the widest gap near the third.
    """
    plan = plan_of(sweep, 2**40, data)
    axes = [path for path in SPACE if path != "training.learning_rate"]
    peaks = sorted(
        plan.predicted_bytes(sweep.run_config(dict(zip(axes, values, strict=True)))) or 0
        for values in _product([sweep.search[path].extremes() for path in axes])
    )
    third = round(len(peaks) * (1 - INFEASIBLE_SHARE))
    place = max((third - 1, third, third + 1), key=lambda index: peaks[index] / peaks[index - 1])
    return math.isqrt(peaks[place] * peaks[place - 1]), 1 - place / len(peaks)


def _product(axes: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [()] if not axes else [(value, *rest) for value in axes[0] for rest in _product(axes[1:])]


def plan_of(sweep: SweepConfig, limit_bytes: int, data: PreparedCorpus) -> SweepPlan:
    limited = sweep.model_copy(update={"resources": sweep.resources.model_copy(update={"memory": limit_bytes})})
    return plan_sweep(limited, vocabulary_size=data.vocabulary.size, num_cpus=2, num_gpus=0)


# The trial, the same for all


class Trial(tune.Trainable):
    """Trains in a thread of a warm actor, and hands its reports to Tune one at a time.

    The config holds `values` (swept settings, or the whole run) and `fixed`: what is the same for all trials.
    """

    def setup(self, config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        self._answers.put(True)
        message = self._messages.get()
        if isinstance(message, BaseException):
            raise message
        return message

    def cleanup(self) -> None:
        self._answers.put(False)
        self._thread.join()

    def _begin(self, config: dict[str, Any]) -> None:
        self._messages: queue.Queue[Any] = queue.Queue()
        self._answers: queue.Queue[bool] = queue.Queue()
        self._thread = threading.Thread(target=self._train, args=(config,), daemon=True)
        self._thread.start()

    def _train(self, config: dict[str, Any]) -> None:
        if not self._answers.get():
            return
        fixed = config["fixed"]
        moments = {"began_at": time.time()}

        def report(values: dict[str, float]) -> bool:
            moments.setdefault("first_report_at", time.time())
            self._messages.put({"report": values, "done": False} | values)
            return self._answers.get()

        if "run" not in config:
            # Tune's users have no prediction to explain a shortage with: its time is not to be charged to them.
            MemoryBudget.in_words = _in_few_words  # type: ignore[method-assign]
        run = RunConfig.model_validate(config["run"]) if "run" in config else run_of(config, fixed["sweep"])
        end = run_training(
            run,
            open_prepared(Path(fixed["prepared"])),
            workers=Workers(),
            folder=Path(tempfile.mkdtemp(dir=fixed["folder"])),
            report=report,
            evaluate_at_tokens=fixed["evaluate_at_tokens"],
            memory_limit_bytes=fixed["limit_bytes"],
            checkpoint_every_s=None,
            report_every_s=1e9,
        )
        ran_out = end.outcome == "infeasible"
        moments |= {"ended_at": time.time()}
        attempt = Attempt(
            first_report_at=moments.get("first_report_at", moments["ended_at"]),
            began_at=moments["began_at"],
            ended_at=moments["ended_at"],
            ran_out=ran_out,
            survived=bool(end.oom_events),
            loss=end.metrics[LOSS] if end.outcome == "completed" else None,
        )
        with (Path(fixed["folder"]) / "attempts.jsonl").open("a") as file:
            file.write(json.dumps(attempt.__dict__) + "\n")
        self._messages.put(
            torch.OutOfMemoryError(end.reason) if ran_out and fixed["raises"] else _last_result(end, ran_out)
        )


def _in_few_words(budget: MemoryBudget, facts: OomFacts, micro_batch_size: int) -> str:
    return facts.message


def _last_result(end: RunEnd, ran_out: bool) -> dict[str, Any]:
    outcome = {"completed": Outcome.COMPLETED, "infeasible": Outcome.INFEASIBLE, "diverged": Outcome.DIVERGED}
    return {
        "done": True,
        "ran_out": ran_out,
        "outcome": str(outcome.get(end.outcome, Outcome.STOPPED)),
        "reason": end.reason,
        "end": end,
        "interruptions": 0,
        "tokens": end.tokens,
    } | ({LOSS: end.metrics[LOSS]} if LOSS in end.metrics else {})


def run_of(config: dict[str, Any], sweep: str) -> RunConfig:
    settings = {path: value for path, value in config.items() if path in SPACE}
    return SweepConfig.model_validate_json(sweep).run_config(settings | {"training.on_oom": "stop"})


# The three searches


class ToldAsPruned(OptunaSearch):
    """OptunaSearch that tells Optuna of a trial that ran out of memory: PRUNED, with its constraint broken."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if LOSS in result:
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._ot_trials[trial_id]
        ran_out = bool(result and result.get("ran_out"))
        trial.set_constraint("memory", 1.0 if ran_out else -1.0)
        if ran_out:
            self._ot_study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return
        super().on_trial_complete(trial_id, result, error)


def run_arm(arm: str, seed: int, sweep: SweepConfig, limit_bytes: int, data: PreparedCorpus, folder: Path) -> Waste:
    """One sweep of one arm."""
    folder.mkdir()
    plan = plan_of(sweep, limit_bytes, data)
    fixed = {
        "prepared": str(data.folder),
        "folder": str(folder),
        "limit_bytes": limit_bytes,
        "evaluate_at_tokens": plan.evaluate_at_tokens,
        "raises": arm == "documented",
        "sweep": sweep.model_dump_json(),
    }
    run = pretune if arm == "pretune" else tuned
    predicting_s = run(arm, seed, plan, fixed, folder)
    attempts = [Attempt(**json.loads(line)) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    return waste_of(sorted(attempts, key=lambda attempt: attempt.began_at), predicting_s)


def tuned(arm: str, seed: int, plan: SweepPlan, fixed: dict[str, Any], folder: Path) -> float:
    """Tune with OptunaSearch and ASHA, as in its guides."""
    budget = plan.sweep.budget
    search = (OptunaSearch if arm == "documented" else ToldAsPruned)(seed=seed)
    scheduler = ASHAScheduler(
        time_attr="tokens", max_t=budget.tokens_per_trial, grace_period=plan.rungs[0], reduction_factor=REDUCTION
    )
    space = {path: _as_tune(distribution) for path, distribution in plan.sweep.search.items()} | {"fixed": fixed}
    _fit(
        folder,
        space,
        tune.TuneConfig(
            metric=LOSS,
            mode="min",
            search_alg=search,
            scheduler=scheduler,
            num_samples=budget.trials,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        [],
    )
    return 0.0


def _as_tune(distribution: Distribution) -> Any:
    values = distribution.extremes()
    return tune.choice(list(values)) if distribution.kind == "choice" else tune.loguniform(*values)


def pretune(arm: str, seed: int, plan: SweepPlan, fixed: dict[str, Any], folder: Path) -> float:
    """pretune's own parts; seconds that went into predictions."""
    _predict.cache_clear()  # each sweep pays for its own
    sweep = plan.sweep.model_copy(update={"searcher": plan.sweep.searcher.model_copy(update={"seed": seed})}, deep=True)
    frontier = plan.frontier()
    spent = [0.0]
    frontier.predict = _timed(frontier.predict, spent)
    scheduler = TokenScheduler(Rungs(plan.rungs, REDUCTION))
    ledger = Ledger(
        TrialStore(folder / "trials"),
        frontier=frontier,
        scheduler=scheduler,
        run_of=lambda record: sweep.run_config(record.settings),
        rungs=plan.rungs,
    )

    def trial_config(record: TrialRecord, run: RunConfig) -> dict[str, Any]:
        return {"number": record.number, "run": run.model_dump(mode="json"), "fixed": fixed}

    searcher = SweepSearcher(
        sweep,
        ledger,
        frontier,
        worst_loss=math.log(plan.vocabulary_size),
        trial_config=trial_config,
        largest_micro_batch=plan.largest_micro_batch,
    )
    options = tune.TuneConfig(
        search_alg=searcher, scheduler=scheduler, num_samples=-1, max_concurrent_trials=1, reuse_actors=True
    )
    _fit(folder, None, options, [LedgerCallback(ledger)])
    assert sum(r.outcome is not Outcome.INFEASIBLE for r in ledger.records.values()) == sweep.budget.trials
    return spent[0]


def _timed(function: Callable[[RunConfig], int], spent: list[float]) -> Callable[[RunConfig], int]:
    def timed(run: RunConfig) -> int:
        began_at = time.perf_counter()
        try:
            return function(run)
        finally:
            spent[0] += time.perf_counter() - began_at

    return timed


def _fit(folder: Path, space: Any, options: tune.TuneConfig, callbacks: list[Any]) -> None:
    tune.Tuner(
        tune.with_resources(Trial, tune.PlacementGroupFactory([{"CPU": 1}])),
        param_space=space,
        tune_config=options,
        run_config=tune.RunConfig(
            storage_path=str(folder / "tune"),
            callbacks=callbacks,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    ).fit()


# What came of it


def waste_of(attempts: list[Attempt], predicting_s: float) -> Waste:
    """The figures of one sweep, from its attempts in order."""
    ends = [*(attempt.began_at for attempt in attempts[1:]), attempts[-1].ended_at]
    lost = 0.0
    for attempt, end in zip(attempts, ends, strict=True):
        if attempt.ran_out:
            lost += end - attempt.began_at
        elif attempt.survived:
            lost += attempt.first_report_at - attempt.began_at
    losses = [attempt.loss for attempt in attempts if attempt.loss is not None]
    return Waste(
        launches=len(attempts),
        ran_out=sum(attempt.ran_out or attempt.survived for attempt in attempts),
        lost_s=lost,
        total_s=attempts[-1].ended_at - attempts[0].began_at,
        predicting_s=predicting_s,
        best_loss=min(losses),
    )


def print_table(found: dict[str, list[Waste]]) -> None:
    """Means over the seeds."""
    names = ("search", "launches", "ran out", "lost, s", "lost", "predicting, s", "total, s", "best loss")
    print("".join(f"{name:>14}" for name in names) + "   mean of the seeds")
    for arm, wastes in found.items():
        mean = {name: statistics.fmean(getattr(waste, name) for waste in wastes) for name in Waste.__slots__}
        share = sum(waste.lost_s for waste in wastes) / sum(waste.total_s for waste in wastes)
        print(
            f"{arm:>14}{mean['launches']:>14.1f}{mean['ran_out']:>14.1f}{mean['lost_s']:>14.2f}{share:>14.2%}"
            f"{mean['predicting_s']:>14.2f}{mean['total_s']:>14.1f}{mean['best_loss']:>14.4f}"
        )
    print("ran out in each sweep: " + "; ".join(f"{arm} {[w.ran_out for w in ws]}" for arm, ws in found.items()))
    losses = {arm: [round(waste.best_loss, 4) for waste in wastes] for arm, wastes in found.items()}
    print("best loss in each sweep: " + "; ".join(f"{arm} {each}" for arm, each in losses.items()))


def figures(found: dict[str, list[Waste]]) -> dict[str, Any]:
    """For the JSON line. A trained trial is one that did not run out; predictions are part of pretune's seconds."""
    ran_out = {arm: statistics.fmean(waste.ran_out for waste in wastes) for arm, wastes in found.items()}
    share = {arm: sum(w.lost_s for w in ws) / sum(w.total_s for w in ws) for arm, ws in found.items()}
    best = {arm: statistics.fmean(waste.best_loss for waste in wastes) for arm, wastes in found.items()}
    cost = {arm: sum(w.total_s for w in ws) / sum(w.launches - w.ran_out for w in ws) for arm, ws in found.items()}
    return {
        "ratios": {
            f"{what}_{arm}_over_pretune": round(of[arm] / of["pretune"], 4)
            for what, of in (("seconds_a_trained_trial", cost), ("best_loss", best))
            for arm in ARMS[:2]
        },
        "out_of_memory_launches": {arm: round(count, 2) for arm, count in ran_out.items()},
        "share_of_time_lost": {arm: round(value, 5) for arm, value in share.items()},
        "best_loss": {arm: round(value, 4) for arm, value in best.items()},
    }


if __name__ == "__main__":
    main()
