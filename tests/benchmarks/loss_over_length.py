"""Final losses predicted from short runs, three ways, on tables of real trainings.

    python tests/benchmarks/loss_over_length.py [--quick] [--table FILE.csv ...] [--runs 24] [--seeds 40]

A job is a grid of settings trained at several lengths. `--runs` of its runs are drawn at its two shortest lengths, and
each way predicts the losses at the longest one.

own      the loss of the same settings at the longer of the two lengths
shifted  a quadratic surface in learning rate and batch size, moved with the length by published exponents
horizon  `fit_loss_over_length`

regret: final loss of the settings that are named the best, over that of the best. rank: Spearman's correlation of
predicted and final losses. cover: share of final losses inside the interval of 95 %. Tables have the columns of
`../shared/data/sweeps` or of `ground_truth`.
"""

import argparse
import csv
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from sweeps.horizon.loss_over_length import KnownLoss, fit_loss_over_length
from sweeps.horizon.setting_axes import axes_of
from sweeps.search_space.distribution import Distribution
from sweeps.settings.setting_paths import BATCH, LEARNING_RATE

ROOT = Path(__file__).resolve().parents[2]
TABLES = (ROOT / "tests/benchmarks/ground_truth", ROOT.parent / "shared/data/sweeps")
PUBLISHED = (0.307, 0.571)
"""Exponents of learning rate and batch size, arXiv:2503.04715."""
Predicted = tuple[np.ndarray, np.ndarray | None]
"""Losses of the settings, NaN where there is none, and their standard deviations."""
Way = Callable[[Sequence[KnownLoss], Sequence[Mapping[str, Any]], int], Predicted]


def jobs_of(path: Path) -> dict[str, list[KnownLoss]]:
    """Name of a job to its runs; a length is in tokens or in thousandths of the full one."""
    jobs: dict[str, list[KnownLoss]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if "smooth loss" in row:
                # One rate is written in several precisions; the grid has half powers of two.
                rate = 2 ** (round(2 * math.log2(float(row["lr"]))) / 2)
                at = {LEARNING_RATE: rate, BATCH: int(row["bs"])}
                tokens, loss = round(float(row["D"]), -6), float(row["smooth loss"])
                jobs[f"{path.stem} {float(row['N']) / 1e6:.0f}M"].append(KnownLoss(at, int(tokens), loss))
            elif "share_of_length" in row:
                at = {LEARNING_RATE: float(row["learning_rate"]), BATCH: int(row["batch_rows"])}
                tokens = float(row["share_of_length"]) * 1000
                jobs[path.stem].append(KnownLoss(at, round(tokens), float(row["holdout_loss"])))
            elif "annealed_1_1" in row and row["seed"] == "0":
                at = {LEARNING_RATE: float(row["learning_rate"]), BATCH: int(row["batch_rows"])}
                at |= {third: float(row[third]) for third in ("beta2", "masking_rate") if third in row}
                for share in (16, 8, 4, 2, 1):
                    loss = float(row[f"annealed_1_{share}"] or math.nan)
                    jobs[path.stem].append(KnownLoss(at, 16_000 // share, loss))
    return jobs


def own(known: Sequence[KnownLoss], wanted: Sequence[Mapping[str, Any]], tokens: int) -> Predicted:
    longest = max(one.tokens for one in known)
    losses = {repr(one.settings): one.loss for one in known if one.tokens == longest}
    return np.array([losses.get(repr(at), math.nan) for at in wanted]), None


def shifted(known: Sequence[KnownLoss], wanted: Sequence[Mapping[str, Any]], tokens: int) -> Predicted:
    used = [one for one in known if math.isfinite(one.loss)]
    losses = np.array([one.loss for one in used])
    lengths = sorted({one.tokens for one in used})
    shares = np.array([one.tokens / tokens for one in used])
    at = _logarithms([one.settings for one in used]) - np.outer(np.log(shares), PUBLISHED)
    middle = at.mean(0)
    levels = np.array([[one.tokens == length for length in lengths] for one in used], float)
    design = np.hstack([levels, _quadratic(at - middle)])
    # Half a nat above the median is a divergence or nearly so.
    found = np.linalg.lstsq(design, np.minimum(losses, np.median(losses) + 0.5), rcond=None)[0]
    return _quadratic(_logarithms(wanted) - middle) @ found[len(lengths) :], None


def horizon(known: Sequence[KnownLoss], wanted: Sequence[Mapping[str, Any]], tokens: int) -> Predicted:
    space = {path: Distribution(choice=tuple(sorted({at[path] for at in wanted}))) for path in wanted[0]}
    model = fit_loss_over_length(axes_of(space), known)
    assert model is not None
    predicted = model.predict(wanted, tokens)
    return predicted.mean, np.sqrt(predicted.sd**2 + model.noise_sd**2)


WAYS: dict[str, Way] = {"own": own, "shifted": shifted, "horizon": horizon}


def _logarithms(settings: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.log([[at[LEARNING_RATE], at[BATCH]] for at in settings])


def _quadratic(z: np.ndarray) -> np.ndarray:
    return np.hstack([z, z**2, z[:, :1] * z[:, 1:]])


def measured(runs: Sequence[KnownLoss], way: Way, *, count: int, seeds: int) -> dict[str, float]:
    """Mean and quantiles of the measures over draws of the known runs."""
    lengths = sorted({one.tokens for one in runs})
    short, full = lengths[:-1][:2], lengths[-1]
    final = {repr(one.settings): one for one in runs if one.tokens == full and math.isfinite(one.loss)}
    wanted = [one.settings for one in final.values()]
    true = np.array([one.loss for one in final.values()])
    regrets, ranks, covers, times = [], [], [], []
    for seed in range(seeds):
        rng, known = np.random.default_rng(seed), []
        for length in short:
            there = [one for one in runs if one.tokens == length]
            known += [there[index] for index in rng.permutation(len(there))[: count // len(short)]]
        start = time.process_time()
        predicted, sd = way(known, wanted, full)
        times.append((time.process_time() - start) * 1000)
        is_known = np.isfinite(predicted)
        if is_known.sum() < 2:
            continue
        regrets.append(true[np.where(is_known, predicted, np.inf).argmin()] - true.min())
        ranks.append(float(spearmanr(predicted[is_known], true[is_known])[0]))
        if sd is not None:
            covers.append(float(np.mean(np.abs(predicted - true) < 1.96 * sd)))
    return {
        "regret": statistics.median(regrets),
        "regret_90": float(np.quantile(regrets, 0.9)),
        "mean_regret": statistics.fmean(regrets),
        "rank": statistics.median(ranks),
        "cover": statistics.fmean(covers) if covers else math.nan,
        "ms": statistics.median(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, nargs="*", help="CSV files; default: those of the tree and shared/data")
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="the smallest table, three draws")
    options = parser.parse_args()
    tables = options.table or [path for folder in TABLES for path in sorted(folder.glob("*.csv"))]
    if options.quick:
        tables = sorted(tables, key=lambda path: path.stat().st_size)[:1]
    ratios = {}
    print(f"{'job':24}{'way':10}{'regret':>8}{'90 %':>8}{'mean':>8}{'rank':>7}{'cover':>7}{'ms':>6}")
    for name, runs in (job for table in tables for job in sorted(jobs_of(table).items())):
        found = {
            way: measured(runs, WAYS[way], count=options.runs, seeds=3 if options.quick else options.seeds)
            for way in WAYS
        }
        for way, row in found.items():
            shown = f"{row['regret']:8.4f}{row['regret_90']:8.4f}{row['mean_regret']:8.4f}{row['rank']:7.2f}"
            print(f"{name:24}{way:10}{shown}{row['cover']:7.2f}{row['ms']:6.0f}", flush=True)
        # A ten-thousandth of a nat is no difference.
        ratios[name] = round(found["horizon"]["mean_regret"] / max(found["own"]["mean_regret"], 1e-4), 3)
    print(json.dumps({"benchmark": "loss_over_length", "ratios": ratios, "quick": options.quick}))


if __name__ == "__main__":
    main()
