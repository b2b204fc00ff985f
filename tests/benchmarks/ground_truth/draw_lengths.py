"""Draw how the best batch size moves with the length of training, from a table of this folder.

python tests/benchmarks/ground_truth/draw_lengths.py [--table causal_books.csv] [--to sweeps/pictures/lengths.png]
"""

import argparse
import csv
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
LENGTHS = {"1/4": "annealed_1_4", "1/2": "annealed_1_2", "full length": "annealed_1_1"}
"""Shares of the length at which all batches have left the loss of token frequencies behind, and their columns."""
BATCH = "batch_rows"


def lowest_by_batch(rows: list[dict[str, str]], column: str) -> dict[int, float]:
    """Batch in rows to the lowest loss of the first seed, in nats per token."""
    batches = sorted({int(row[BATCH]) for row in rows})
    return {
        batch: min(
            float(row[column]) for row in rows if int(row[BATCH]) == batch and row["seed"] == "0" and row[column]
        )
        for batch in batches
    }


def main() -> None:
    """Draw the picture, and print the best batch of each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=HERE / "causal_books.csv")
    parser.add_argument("--to", type=Path, default=HERE.parents[2] / "sweeps" / "pictures" / "lengths.png")
    arguments = parser.parse_args()
    with arguments.table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = pyplot.subplots(figsize=(6.4, 2.9), layout="constrained")
    best = {}
    for (name, column), colour in zip(LENGTHS.items(), ("#c4560e", "#a3821a", "#2468ae"), strict=True):
        losses = lowest_by_batch(rows, column)
        lowest = min(losses.values())
        best[name] = min(losses, key=lambda batch: losses[batch])
        axes.plot(list(losses), [loss - lowest for loss in losses.values()], marker="o", color=colour, label=name)
        axes.annotate(name, (max(losses), losses[max(losses)] - lowest), xytext=(6, 0), textcoords="offset points",
                      color=colour, va="center")  # fmt: skip
    axes.set_xscale("log", base=2, subs=[])
    axes.set_xticks(list(losses), [str(batch) for batch in losses])
    axes.set_xlim(right=max(losses) * 1.8)
    axes.set_xlabel("batch size, rows of 32 tokens")
    axes.set_ylabel("loss over the best, nats")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.to, dpi=150)
    print(json.dumps({"benchmark": "draw_lengths", "best_batch": best}))


if __name__ == "__main__":
    main()
