"""Train the ground truth: every setting of every job to its end, a row of the job's table for each training.

    python tests/benchmarks/ground_truth/make_truth_tables.py [--quick] [--job NAME ...] [--workers 2] [--folder FOLDER]

A row is appended whole when its training ends, so the script can be killed at any moment. Started again with the same
arguments, it trains the missing rows. When all settings of a job are there, its best ones get further seeds. It needs
../shared/data, and hours: one process and one thread for each worker.

--quick: seconds; small copies of all jobs on text made here, into a temporary folder unless one is named.
"""

import argparse
import csv
import io
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from truth_jobs import JOBS, SEEDS, Job, Setting, quick
from truth_training import ANNEALED, columns, train

from data_pipeline.files.own_files import private_temp_folder

Row = dict[str, str]


@dataclass(frozen=True)
class Training:
    """One row of a table."""

    job: Job
    setting: Setting
    seed: int


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--job", choices=JOBS, action="append", help="may be given several times; default: all")
    arguments.add_argument("--workers", type=int, default=1)
    arguments.add_argument("--folder", type=Path, help="of the tables; default: the folder of this script")
    asked = arguments.parse_args()
    # Token blocks stay here from one start to the next.
    work = private_temp_folder("pretune-ground-truth", longest=200)
    jobs = [JOBS[name] for name in asked.job or JOBS]
    with tempfile.TemporaryDirectory(dir=work) as passing:
        folder = asked.folder or (Path(passing) if asked.quick else Path(__file__).parent)
        if asked.quick:
            text = write_text(Path(passing) / "text.jsonl")
            jobs = [quick(job, text) for job in jobs]
        make_tables(jobs, folder, workers=asked.workers, work=work)
        lowest = {job.name: float(best_first(read_table(job, folder))[0][ANNEALED[-1]]) for job in jobs}
    print(json.dumps({"benchmark": "make_truth_tables", "best_losses": lowest, "quick": asked.quick}))


def make_tables(jobs: Sequence[Job], folder: Path, *, workers: int, work: Path) -> None:
    """Complete the tables of these jobs in the folder, design jobs first.

    Args:
        work: Folder for token blocks and checkpoints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        job.prepared(work)
        mend(job, folder)
    # Not forked: a fork would copy the threads of libraries in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        for role in ("design", "judge"):
            # The best are known only when all settings are there.
            for missing in (missing_settings, missing_repeats):
                trainings = [one for job in jobs if job.role == role for one in missing(job, folder)]
                run_all(pool, trainings, folder, work, workers)


def run_all(pool: ProcessPoolExecutor, trainings: Sequence[Training], folder: Path, work: Path, workers: int) -> None:
    """Run trainings in their order and append the row of each as it ends."""
    waiting = iter(trainings)
    running = {pool.submit(train_in_process, one, work): one for one in islice(waiting, workers)}
    while running:
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(done).job
            append(job, folder, done.result())
            print(f"{job.name}: {len(read_table(job, folder))} trainings", flush=True)
            for following in islice(waiting, 1):
                running[pool.submit(train_in_process, following, work)] = following


def missing_settings(job: Job, folder: Path) -> list[Training]:
    """Trainings with the first seed that have no row, in the order of the job."""
    done = {training_of(job, row) for row in read_table(job, folder)}
    return [one for setting in job.in_order() if (one := Training(job, setting, SEEDS[0])) not in done]


def missing_repeats(job: Job, folder: Path) -> list[Training]:
    """Trainings of the best settings with further seeds that have no row."""
    rows = read_table(job, folder)
    done = {training_of(job, row) for row in rows}
    best = [training_of(job, row).setting for row in best_first(rows)[: job.repeated]]
    return [one for seed in SEEDS[1:] for setting in best if (one := Training(job, setting, seed)) not in done]


def end_with_parent() -> None:
    """End this worker as soon as the script is gone, killed or not."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def train_in_process(one: Training, work: Path) -> dict[str, Any]:
    """Row of one training; runs in a worker."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        return train(one.job, one.setting, seed=one.seed, data=one.job.prepared(work), folder=Path(folder))


# Tables


def path_of(job: Job, folder: Path) -> Path:
    """File of the table of a job."""
    return folder / f"{job.name}.csv"


def read_table(job: Job, folder: Path) -> list[Row]:
    """All rows of a table; empty without a file."""
    path = path_of(job, folder)
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))) if path.exists() else []


def best_first(rows: Sequence[Row]) -> list[Row]:
    """Rows of the first seed that were annealed at the full length, lowest loss first."""
    found = [row for row in rows if int(row["seed"]) == SEEDS[0] and row[ANNEALED[-1]]]
    return sorted(found, key=lambda row: float(row[ANNEALED[-1]]))


def training_of(job: Job, row: Row) -> Training:
    """The training that a row is of."""
    setting = Setting(float(row["learning_rate"]), int(row["batch_rows"]), float(row[job.third]))
    return Training(job, setting, int(row["seed"]))


def append(job: Job, folder: Path, row: dict[str, Any]) -> None:
    """Add a row in one write; the first brings the header."""
    path = path_of(job, folder)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(job), lineterminator="\n")
    if not path.exists() or path.stat().st_size == 0:
        writer.writeheader()
    writer.writerow(row)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, text.getvalue().encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mend(job: Job, folder: Path) -> None:
    """Remove a last line that a kill left without its end."""
    path = path_of(job, folder)
    if path.exists():
        whole = path.read_bytes()
        os.truncate(path, whole.rfind(b"\n") + 1)


def write_text(path: Path) -> Path:
    """Rows of words that follow each other with some order, for --quick."""
    drawn = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(400):
            first = drawn.randrange(97)
            words = [f"w{(first * (place + 1)) % 97:02}" for place in range(60)]
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    return path


if __name__ == "__main__":
    main()
