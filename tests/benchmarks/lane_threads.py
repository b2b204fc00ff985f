"""What it costs when lanes share processors: each lane with threads of its own, against each with all of them.

As many processes as there are lanes train the same small model at once, as lanes do on one node. `own` gives each its
part of the cores, as pretune's lanes have it; `all` gives each as many threads as there are cores, as torch does by
itself; `one` is a single lane with all cores. Tokens/s are of all lanes together.

    python tests/benchmarks/lane_threads.py [--quick]
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

ROUNDS, QUICK_ROUNDS = 5, 1
TOKENS, QUICK_TOKENS = 600_000, 150_000


def train(prepared: Path, folder: Path, threads: int, tokens: int, start: Barrier) -> None:
    """One lane's trial, begun when all are ready."""
    import torch

    from core.distributed.workers import Workers
    from core.settings.run_config import RunConfig
    from core.training.training_run import run_training
    from data_pipeline.tokens.token_blocks import open_prepared

    torch.set_num_threads(threads)
    run = RunConfig.model_validate(
        {
            "model": {"layers": 4, "width": 128, "heads": 4, "sequence_length": 64},
            "objective": {"masked_lm": {}},
            "training": {"batch_size": 32, "micro_batch_size": 32, "tokens": tokens},
        }
    )
    corpus = open_prepared(prepared)
    start.wait()
    run_training(
        run,
        corpus,
        workers=Workers(device=torch.device("cpu")),
        folder=folder,
        report=lambda _: True,
        evaluate_at_tokens=(),
    )


def tokens_per_s(prepared: Path, *, lanes: int, threads: int, tokens: int) -> float:
    """Of so many lanes at once, together."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(lanes + 1)
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for lane in range(lanes):
            (Path(folder) / str(lane)).mkdir()
            arguments = (prepared, Path(folder) / str(lane), threads, tokens, start)
            processes.append(context.Process(target=train, args=arguments))
        for process in processes:
            process.start()
        start.wait()
        began = time.perf_counter()
        for process in processes:
            process.join()
        took_s = time.perf_counter() - began
    assert all(process.exitcode == 0 for process in processes)
    return lanes * tokens / took_s


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds, tokens = (QUICK_ROUNDS, QUICK_TOKENS) if arguments.quick else (ROUNDS, TOKENS)
    cores = os.cpu_count() or 1
    lanes = max(2, cores)
    ways = {"own": (lanes, max(1, cores // lanes)), "all": (lanes, cores), "one": (1, cores)}
    measured: dict[str, list[float]] = {way: [] for way in ways}
    from data_pipeline.preparation.prepare import prepare
    from data_pipeline.reading.parcel_tasks import for_each_parcel_here
    from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig

    with tempfile.TemporaryDirectory(prefix="lane-threads-") as folder:
        data = prepare(
            CorpusConfig(builtin="python-docs", holdout=0.05),
            TokenizerConfig(kind="byte-bpe", vocabulary=1000),
            PackingConfig(sequence_length=64),
            prepared_folder=Path(folder),
            run=for_each_parcel_here,
        )
        for _ in range(rounds):
            for way, (count, threads) in ways.items():
                measured[way].append(tokens_per_s(data.folder, lanes=count, threads=threads, tokens=tokens))
    medians = {way: statistics.median(values) for way, values in measured.items()}
    print(f"{'':<6}{'lanes':>6}{'threads':>9}{'tokens/s, all lanes':>21}")
    for way, (count, threads) in ways.items():
        print(f"{way:<6}{count:>6}{threads:>9}{medians[way]:>21,.0f}")
    ratios = {f"own_to_{way}": round(medians["own"] / medians[way], 2) for way in ("all", "one")}
    print(json.dumps({"benchmark": "lane_threads", "ratios": ratios, "cores": cores, "quick": arguments.quick}))


if __name__ == "__main__":
    main()
