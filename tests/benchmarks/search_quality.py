"""Regret of the winner that a search names, against the tokens it spends, on tables of real trainings.

Each search is run many times against a table of losses: pretune's own searcher, ledger, promotion, budget and verdict,
with a table in place of lanes. Regret is the loss of the named winner at the full length above the best of the table,
in nats. Each repetition sees another part of the grid (a run of at least two thirds of the values of each axis), so
that no search profits from a grid whose middle is good.

    python tests/benchmarks/search_quality.py [--quick] [--table FILE.csv ...] [--job NAME ...] [--share 0.1 ...]
        [--seeds 40]

Without `--table` it reads the tables of tests/benchmarks/ground_truth, and the public table where it lies beside the
project (../shared/data/sweeps). Columns of a table: those of either.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "search_replay"))

from loss_table import LossTable, read_tables  # noqa: E402
from peers import optuna_hyperband, ray_tune  # noqa: E402
from table_sweep import pretune  # noqa: E402

PUBLIC = HERE.parents[2] / "shared" / "data" / "sweeps" / "steplaw_dense.csv"
SHARES = (0.05, 0.1, 0.2)
"""Tokens of a search, as a share of those of the full grid."""
FEWEST_SETTINGS = 16
"""Settings below which a table has nothing to search."""
NEW, ASHA, PEER = "full-length", "ASHA, TPE", "Ray Tune: Optuna and ASHA"


@dataclass(frozen=True)
class Named:
    """A search that has ended."""

    regret: float
    """Nats above the best of the table."""
    share: float
    """Tokens spent, as a share of those of the full grid."""


Search = Callable[[LossTable, int, int], tuple[tuple[float, ...], int]]
"""Table, tokens and seed to the named settings and the tokens spent."""

SEARCHES: dict[str, Search] = {
    NEW: pretune("full-length"),
    "trunk and branch": pretune("trunk-and-branch"),
    ASHA: pretune("asha"),
    "median, TPE": pretune("median"),
    "TPE, in full": pretune("none"),
    "GP, in full": pretune("none", searcher="gp"),
    "random, in full": pretune("none", searcher="random"),
    PEER: ray_tune,
    "Optuna: TPE and Hyperband": optuna_hyperband,
}


def part_of(table: LossTable, seed: int) -> LossTable:
    """A run of at least two thirds of the values of each axis."""
    draw = random.Random(f"part {seed}")
    kept = {}
    for path, axis in table.axes.items():
        count = draw.randint(-(-2 * len(axis) // 3), len(axis))
        start = draw.randint(0, len(axis) - count)
        kept[path] = axis[start : start + count]
    return table.within(kept)


def measure(table: LossTable, search: Search, share: float, seeds: int) -> list[Named]:
    """One search for each seed."""
    found = []
    for seed in range(seeds):
        part = part_of(table, seed)
        named, tokens = search(part, round(share * part.grid_tokens), seed)
        found.append(Named(part.regret(named), tokens / part.grid_tokens))
    return found


def main() -> None:
    """Print a table for each job and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", type=Path, action="append", default=[])
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--share", type=float, action="append", default=[], help="of the grid's tokens; default: all")
    parser.add_argument("--job", action="append", default=[], help="part of the name of a table; default: all")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="optuna|ray")
    files = arguments.table or [*sorted((HERE / "ground_truth").glob("*.csv")), *([PUBLIC] if PUBLIC.exists() else [])]
    found = [table for file in files for table in read_tables(file)]
    tables = [table for table in found if len(table.lengths) > 1 and len(table.settings) >= FEWEST_SETTINGS]
    for table in found:
        if table not in tables:
            print(f"{table.name}: left out, {len(table.settings)} settings at {len(table.lengths)} lengths are too few")
    if arguments.job:
        tables = [table for table in tables if any(job in table.name for job in arguments.job)]
    seeds, shares = arguments.seeds, tuple(arguments.share) or SHARES
    if arguments.quick:
        tables, seeds, shares = tables[:1], 3, (0.1,)
    ratios: dict[str, float] = {}
    for table in tables:
        noise = "" if table.seed_deviation is None else f", deviation between seeds {table.seed_deviation:.4f} nats"
        print(f"{table.name}: {len(table.settings)} settings{noise}")
        print(f"regret in nats: median [95 % interval of the median] (90 % of {seeds} searches are at or below)")
        print(
            f"{'':<27}" + "".join(f"{f'{share:.0%} of the grid':>34}" for share in shares) + f"{'spent':>8}{'each':>7}"
        )
        medians: dict[str, dict[float, float]] = {}
        for name, search in SEARCHES.items():
            began = time.process_time()
            runs = {share: measure(table, search, share, seeds) for share in shares}
            seconds = (time.process_time() - began) / (seeds * len(shares))
            regrets = {share: sorted(one.regret for one in runs[share]) for share in shares}
            medians[name] = {share: statistics.median(regrets[share]) for share in shares}
            cells = "".join(f"{in_a_cell(regrets[share]):>34}" for share in shares)
            spent = statistics.fmean(one.share for one in runs[shares[-1]])
            print(f"{name:<27}{cells}{spent:>8.1%}{seconds:>6.1f}s", flush=True)
        for share in shares:
            for name in (ASHA, PEER):
                # A regret below the rounding of the tables is none.
                ratio = max(medians[name][share], 1e-4) / max(medians[NEW][share], 1e-4)
                ratios[f"{table.name}, {share:.0%}, over {name}"] = round(ratio, 2)
    print(json.dumps({"benchmark": "search_quality", "ratios": ratios, "quick": arguments.quick}))


def in_a_cell(regrets: list[float]) -> str:
    """Median, its interval by order statistics, and the 90th of a hundred, of sorted regrets."""
    count = len(regrets)
    reach = 1.96 * math.sqrt(count) / 2
    low, high = max(0, math.floor(count / 2 - reach)), min(count - 1, math.ceil(count / 2 + reach))
    ninetieth = regrets[min(count - 1, int(0.9 * count))]
    return f"{statistics.median(regrets):.4f} [{regrets[low]:.4f} {regrets[high]:.4f}] ({ninetieth:.4f})"


if __name__ == "__main__":
    main()
