"""Best learning rate at several widths, with and without mup, and the loss at the rate that the narrowest found.

    python tests/benchmarks/width_transfer.py [--quick] [--tokens 20k] [--processes 2]

The decoder and the text of `optimizers.py` with heads of 32 at widths 64, 128 and 256, 2 rows a step, over a grid of 16
learning rates, a factor of 1.5 apart. The base of mup has the narrowest width, so both are equal there. `moves`: grid
steps from the best rate of the narrowest to that of the widest; a best rate is the vertex of a parabola through the
losses around the lowest, so noise between seeds moves it by less than a step. `lost`: loss of the widest at the
narrowest's best rate, minus its own lowest, in nats. `--optimizer muon` asks the same of Muon. The last line is JSON.

--quick: three rates, two widths, few steps. Otherwise some ten minutes on two cores.
"""

import argparse
import json
import math
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from optimizers import decoder_run, prepared_text, train

from data_pipeline.schema.settings import parse_count

WIDTHS = (64, 128, 256)
RATIO = 1.5
RATES = tuple(float(f"{4e-4 * RATIO**number:.3g}") for number in range(16))
"""0.0004 to 0.175."""
VOCABULARY = 500
Case = tuple[str, int, float]


def _loss(case: Case, *, folder: Path, tokens: int, optimizer: str, base: int) -> float:
    torch.set_num_threads(1)
    parametrization, width, rate = case
    model = {"parametrization": parametrization, "mup_base_width": base}
    run = decoder_run(width=width, rate=rate, seed=0, batch_size=2, model=model, optimizer=optimizer)
    return train(run, prepared_text(folder, vocabulary=VOCABULARY), tokens=tokens).loss


def best_step(losses: list[float]) -> float:
    """Index of the best rate, between grid points: the vertex of a parabola through the lowest loss and its two
    neighbours on each side."""
    lowest = int(np.argmin(losses))
    near = [n for n in range(max(0, lowest - 2), min(len(losses), lowest + 3)) if math.isfinite(losses[n])]
    if len(near) < 3:
        return float(lowest)
    square, slope, _ = np.polyfit(near, [losses[n] for n in near], 2)
    return float(np.clip(-slope / (2 * square), near[0], near[-1])) if square > 0 else float(lowest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tokens", default="20k")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    asked = parser.parse_args()
    tokens = 3_000 if asked.quick else int(parse_count(asked.tokens))
    widths, rates = (WIDTHS[:2], RATES[3:12:4]) if asked.quick else (WIDTHS, RATES)
    base = widths[0]
    # At the base both are one. Wide models last longest, so they begin.
    cases: list[Case] = [(way, width, rate) for width in widths[:0:-1] for way in ("standard", "mup") for rate in rates]
    cases += [("standard", base, rate) for rate in rates]
    with tempfile.TemporaryDirectory() as temporary:
        prepared_text(Path(temporary), vocabulary=VOCABULARY)
        one = partial(_loss, folder=Path(temporary), tokens=tokens, optimizer=asked.optimizer, base=base)
        with ProcessPoolExecutor(asked.processes, mp_context=get_context("spawn")) as pool:
            losses = {}
            for case, loss in zip(cases, pool.map(one, cases), strict=True):
                losses[case] = loss
                print(f"{case[0]}, width {case[1]}, rate {case[2]:g}: loss {loss:.4f}", file=sys.stderr, flush=True)
    losses |= {("mup", base, rate): losses["standard", base, rate] for rate in rates}
    ratios: dict[str, float] = {}
    for way in ("standard", "mup"):
        print(f"{way:<10}{'rate':>9}" + "".join(f"{f'width {width}':>12}" for width in widths))
        for rate in rates:
            print(f"{'':<10}{rate:>9g}" + "".join(f"{losses[way, width, rate]:>12.4f}" for width in widths))
        columns = {width: [losses[way, width, rate] for rate in rates] for width in widths}
        found = {width: best_step(column) for width, column in columns.items()}
        print(f"{'best step':>19}" + "".join(f"{found[width]:>12.2f}" for width in widths))
        kept = int(np.argmin(columns[base]))
        widest = columns[widths[-1]]
        ratios[f"{way}_moves"] = round(found[widths[-1]] - found[base], 2)
        ratios[f"{way}_lost_nats"] = round(widest[kept] - min(widest), 4)
        ratios[f"{way}_best_of_widest"] = round(min(widest), 4)
    print(json.dumps({"benchmark": "width_transfer", "ratios": ratios, "quick": asked.quick}))


if __name__ == "__main__":
    main()
