"""A sweep of pretune's own searcher, ledger, budget and winner on a table of known losses instead of lanes."""

import heapq
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loss_table import BATCH, LossTable, Setting

from core.settings.cooldown_branch import Branch
from core.settings.run_config import RunConfig
from core.training.run_end import RunEnd
from data_pipeline.schema.dotted_paths import value_at
from sweeps.analysis.noise_floor import Verdict, verdict
from sweeps.early_stopping.median_stopping import MedianRule
from sweeps.early_stopping.promotion import Promotions
from sweeps.early_stopping.rungs import Rungs
from sweeps.early_stopping.token_scheduler import TokenScheduler
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier, Refusal
from sweeps.records.trial_records import LOSS, MemoryVerdict, RefusedProposal, TrialRecord, TrialStore
from sweeps.search.full_length_search import FullLengthSearch, full_length_search
from sweeps.search.ledger import Ledger
from sweeps.search.sweep_budget import SweepBudget
from sweeps.search.sweep_searcher import SweepSearcher
from sweeps.settings.setting_paths import SEED
from sweeps.settings.sweep_config import SweepConfig

LONGEST_PROBE = 0.4
"""Share of the full length above which a run is no probe; tables have their own lengths."""


class UnwrittenTrials(TrialStore):
    """Records that stay in memory: thousands of sweeps are replayed, and none is resumed."""

    def __init__(self) -> None:
        self.folder = Path("unwritten")

    def save(self, record: TrialRecord) -> None:
        """Keep nothing: the ledger has the record."""

    def load_all(self) -> list[TrialRecord]:
        """No record from before."""
        return []

    def append_report(self, record: TrialRecord, report: dict[str, float]) -> None:
        """Keep nothing."""

    def append_refusal(self, refused: RefusedProposal) -> None:
        """Keep nothing."""

    def load_refusals(self) -> list[RefusedProposal]:
        """No refusal from before."""
        return []

    def load_widenings(self) -> list[Any]:
        """No widening from before."""
        return []


class TableFrontier(MemoryFrontier):
    """Refuses the combinations that the table does not have; all others fit."""

    table: LossTable

    def refusal(self, run: RunConfig, *, trust_prediction: bool = True, may_shrink: bool = False) -> Refusal | None:  # noqa: ARG002
        """A refusal of a combination that was not trained."""
        values = tuple(value_at(run, path) for path in self.table.axes)
        if values in self.table.settings_known:
            return None
        return Refusal(MemoryVerdict.INVALID, "the table does not have it", None, 1.0)


def sweep_on(table: LossTable, *, seed: int, tokens: int, **sections: Mapping[str, Any]) -> SweepConfig:
    """A sweep file whose space is the grid of a table.

    Args:
        tokens: Budget of all trials together.
        sections: Sections of the file, which replace those of the default.
    """
    num_seeds = max(map(len, table.annealed.values()))
    return SweepConfig.model_validate(
        {
            "name": "replay",
            "corpus": {"builtin": "python-docs", "holdout": "5%"},
            "tokenizer": {"kind": "byte-bpe", "vocabulary": 1000},
            "model": {"layers": 1, "width": 32, "heads": 2, "sequence_length": 64},
            "objective": {"masked_lm": {}},
            "search": {path: {"choice": [*values]} for path, values in _space(table).items()},
            "searcher": {"seed": seed},
            "budget": {"tokens_per_trial": table.full, "tokens": tokens},
            "resources": {"concurrent_trials": 1},
            # A second seed of a table that has none would be the first again, and the noise zero.
            **({} if num_seeds > 1 else {"repeats": {"trials": 0}}),
            **sections,
        }
    )


@dataclass(frozen=True)
class ReplayedSweep:
    """The end of a replayed sweep."""

    records: tuple[TrialRecord, ...]
    verdict: Verdict | None
    """None: no trial completed."""
    tokens: int
    """Tokens of all trials, branches included."""
    named: Setting | None
    """Settings of the winner; None if no trial completed."""


def replay_sweep(
    table: LossTable,
    sweep: SweepConfig,
    *,
    lanes: int = 1,
) -> ReplayedSweep:
    """Run a sweep of pretune's own parts on a table.

    Args:
        lanes: Trials at a time; each takes a second a token.
    """
    stopping = sweep.early_stopping
    rungs = table.lengths[:-1]
    full_length = _on_the_table(table, full_length_search(sweep)) if stopping.method == "full-length" else None
    promotions = None
    rule: Rungs | MedianRule = Rungs((), stopping.reduction_factor)
    if stopping.method == "trunk-and-branch":
        promotions = Promotions(rungs, stopping.reduction_factor, sweep.num_trials)
    elif stopping.method == "asha":
        rule = Rungs(rungs, stopping.reduction_factor)
    elif stopping.method == "median":
        rule = MedianRule(rungs)
    scheduler = TokenScheduler(rule)
    frontier = TableFrontier(10**12, num_workers=1, predict=lambda _: 1, source="replay")
    frontier.table = table
    ledger = Ledger(
        UnwrittenTrials(),
        frontier=frontier,
        scheduler=scheduler,
        run_of=lambda record: sweep.run_config(record.settings),
        rungs=() if promotions or full_length else rungs,
    )

    def leg(record: TrialRecord, run: RunConfig) -> dict[str, Any]:
        pausing = promotions or full_length
        pause = None if pausing is None else pausing.pause_of(record, cooldown=run.training.cooldown)
        return {"number": record.number, "pause": pause}

    searcher = SweepSearcher(
        sweep,
        ledger,
        frontier,
        worst_loss=math.log(1000),
        trial_config=leg,
        largest_micro_batch=lambda run, _: run.training.batch_size,
        budget=SweepBudget(
            sweep.budget,
            elapsed_s=lambda: 0.0,
            num_repeats=sweep.num_repeats,
            keeps_repeats=sweep.repeats.trials != "auto",
        ),
        promotions=promotions,
        full_length=full_length,
    )
    running: list[tuple[int, str, dict[str, Any], int]] = []
    now, ids = 0, map("leg-{}".format, itertools.count())
    while True:
        while len(running) < lanes:
            tune_id = next(ids)
            config = searcher.suggest(tune_id)
            if config is None or config == "FINISHED":
                break
            record = ledger.records[config["number"]]
            end = config["pause"].at_tokens if config["pause"] else table.full
            cooldown = config["pause"].cooldown_tokens if config["pause"] else 0
            heapq.heappush(running, (now + end - record.tokens + cooldown, tune_id, config, record.tokens))
        if not running:
            break
        now, tune_id, config, begin = heapq.heappop(running)
        _end_leg(
            table,
            ledger,
            scheduler,
            searcher,
            tune_id,
            config,
            rungs if promotions is None and full_length is None and stopping.method != "none" else (),
            begin,
        )
    records = tuple(ledger.records.values())
    found = verdict(records)
    named = None if found is None else table.setting_of(found.best.records[0].settings)
    return ReplayedSweep(records, found, sum(record.tokens_spent for record in records), named)


def replayed(table: LossTable, tokens: int, seed: int, *, stopping: str, searcher: str = "tpe") -> ReplayedSweep:
    """The end of a search of pretune with a method of early stopping."""
    sweep = sweep_on(
        table,
        seed=seed,
        tokens=tokens,
        searcher={"seed": seed, "method": searcher},
        early_stopping={"method": stopping, "confirm": 2 if tokens > 4 * table.full else 1},
    )
    return replay_sweep(table, sweep)


def pretune(stopping: str, *, searcher: str = "tpe") -> Callable[[LossTable, int, int], tuple[Setting, int]]:
    """A search of pretune as a function of table, tokens and seed."""

    def search(table: LossTable, tokens: int, seed: int) -> tuple[Setting, int]:
        ended = replayed(table, tokens, seed, stopping=stopping, searcher=searcher)
        # A budget that was too small for a training in full names nothing; the search stands where it began.
        return table.settings[0] if ended.named is None else ended.named, ended.tokens

    return search


def _end_leg(
    table: LossTable,
    ledger: Ledger,
    scheduler: TokenScheduler,
    searcher: SweepSearcher,
    tune_id: str,
    config: dict[str, Any],
    rungs: tuple[int, ...],
    begin: int,
) -> None:
    """Tell the searcher how a leg of a trial ends, by the table."""
    record = ledger.records[config["number"]]
    setting, seed = table.setting_of(record.settings), record.settings.get(SEED, 0)
    pause = config["pause"]
    if pause is not None:
        metrics = {LOSS: table.loss(setting, pause.at_tokens, seed=seed)}
        branch = Branch(metrics, pause.cooldown_tokens, 0.0)
        end = RunEnd("paused", "paused", metrics, pause.at_tokens, 1, None, branch=branch)
        searcher.on_trial_complete(tune_id, {"paused_at": pause.at_tokens, "end": end, "interruptions": 0})
        return
    for rung in (one for one in rungs if one > begin and not record.is_repeat):
        loss = table.raw_loss(setting, rung)
        ledger.report(record.number, {"tokens": float(rung), LOSS: loss})
        decision = scheduler._rule.judge(record.number, rung, loss)
        if not decision.continues:
            scheduler.stopped[record.number] = decision.reason
            searcher.on_trial_complete(tune_id, None)
            return
    loss = table.loss(setting, table.full, seed=seed)
    metrics = {LOSS: loss}
    ledger.report(record.number, {"tokens": float(table.full), LOSS: loss})
    end = RunEnd("completed", "as in the table", metrics, table.full, 1, None)
    searcher.on_trial_complete(
        tune_id, {"outcome": "COMPLETED", "reason": "as in the table", "interruptions": 0, "end": end}
    )


def _on_the_table(table: LossTable, search: FullLengthSearch) -> FullLengthSearch:
    """The same rule with probes at settings and lengths that the table has."""

    def nearest(values: Mapping[str, Any], tokens: int) -> dict[str, Any] | None:
        setting = table.setting_of(values)
        return table.values(setting) if (setting, tokens) in table.annealed else None

    candidates = [table.values(setting) for setting in map(table.setting_of, search.candidates)]
    possible = [one for one in candidates if table.setting_of(one) in table.settings_known]
    rungs = tuple(length for length in table.lengths if length <= LONGEST_PROBE * table.full)
    return replace(search, candidates=possible, rungs=rungs, shortest=lambda _: 0.0, nearest=nearest)


def _space(table: LossTable) -> dict[str, tuple[float, ...]]:
    return {path: tuple(map(int, axis)) if path == BATCH else axis for path, axis in table.axes.items()}
