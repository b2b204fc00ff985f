"""What MLflow costs a trial: training alone, with the SQLite store, with a real server 50 ms away, in turn.

The trial trains in this process, which also sends: what the sending thread takes of the interpreter slows training more
here than in a sweep, whose trials train in processes of their own. The server is `mlflow server` behind a TCP proxy on
loopback that holds back every packet for half of the round trip.

    python tests/benchmarks/tracking_cost.py [--quick]

held up: share of the trial's time that it waited in calls of tracking. processor: share of one core, over the trial's
time, that sending took in this process. at the end: seconds to send the rest, the files of the sweep included, once a
sweep. slower: wall time of the trial against training alone, in medians; on a machine that does other things, noise.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from core.distributed.workers import Workers
from core.settings.run_config import RunConfig
from core.training.training_run import run_training
from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.tokens.token_blocks import PreparedCorpus
from sweeps.records.outcomes import Outcome
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.tracking.mlflow_tracking import Tracking

ROUND_TRIP_S = 0.05
STORES = ("none", "sqlite", "server_50ms_away")


@dataclass(frozen=True)
class Cost:
    """One trial."""

    trial_s: float
    held_s: float
    processor_s: float
    end_s: float
    num_reports: int


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short trials, one round: a smoke check")
    arguments = parser.parse_args()
    tokens, rounds = (20_000, 1) if arguments.quick else (600_000, 3)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    costs: dict[str, list[Cost]] = {store: [] for store in STORES}
    with tempfile.TemporaryDirectory() as scratch, far_server(Path(scratch)) as address:
        data = corpus(Path(scratch))
        train(data, Path(scratch) / "warm-up", "warm-up", tokens=5_000, address=None)
        for number in range(rounds):
            for store in STORES:
                folder = Path(scratch) / f"{store}-{number}"
                where = {"none": None, "sqlite": f"sqlite:///{scratch}/mlflow.db", "server_50ms_away": address}[store]
                costs[store].append(train(data, folder, store, tokens=tokens, address=where))
    print_table(costs, quick=arguments.quick)


def print_table(costs: dict[str, list[Cost]], *, quick: bool) -> None:
    """Medians of each store, and their shares of a trial's time."""
    alone_s = statistics.median(cost.trial_s for cost in costs["none"])
    print(f"{'store':<18}{'trial, s':>10}{'reports':>9}{'held up':>10}{'processor':>11}{'at the end':>12}{'slower':>9}")
    ratios = {}
    for store in STORES:
        middle = {
            name: statistics.median(getattr(cost, name) for cost in costs[store]) for name in Cost.__annotations__
        }
        held, processor = middle["held_s"] / middle["trial_s"], middle["processor_s"] / middle["trial_s"]
        slower = middle["trial_s"] / alone_s - 1
        print(
            f"{store:<18}{middle['trial_s']:>10.2f}{middle['num_reports']:>9.0f}{held:>10.3%}{processor:>11.2%}"
            f"{middle['end_s']:>10.2f} s{slower:>9.1%}"
        )
        if store != "none":
            ratios |= {f"{store}_held_up": held, f"{store}_processor": processor, f"{store}_slower": slower}
    rounded = {name: round(value, 5) for name, value in ratios.items()}
    print(json.dumps({"benchmark": "tracking_cost", "ratios": rounded, "quick": quick}))


def train(data: PreparedCorpus, folder: Path, name: str, *, tokens: int, address: str | None) -> Cost:
    """One trial of `tokens` tokens, tracked as the ledger tracks it."""
    folder.mkdir(parents=True)
    trials = TrialStore(folder / "trials")
    record = TrialRecord(number=1, settings={"training.learning_rate": 1e-3}, started_at=now())
    trials.save(record)
    tracking = started(folder, name, trials, address)
    held_s, num_reports = 0.0, 0

    def tell(event: TrialEvent, report: dict[str, float] | None = None) -> None:
        nonlocal held_s, num_reports
        began_at = time.perf_counter()
        if tracking is not None:
            tracking.on_event(event, record, report)
        held_s += time.perf_counter() - began_at
        num_reports += report is not None

    def report(values: dict[str, float]) -> bool:
        trials.append_report(record, values)
        tell(TrialEvent.REPORT, values)
        return True

    run = RunConfig.model_validate(
        {
            "model": {"family": "encoder", "layers": 2, "width": 128, "heads": 2, "sequence_length": 64},
            "objective": {"masked_lm": {}},
            "training": {"batch_size": 32, "micro_batch_size": 32, "tokens": tokens},
        }
    )
    tell(TrialEvent.STARTED)
    began_at = time.perf_counter()
    points = [tokens * point // 8 for point in range(1, 9)]
    end = run_training(
        run, data, workers=Workers(), folder=folder / "run", report=report, evaluate_at_tokens=points,
        checkpoint_every_s=None,
    )  # fmt: skip
    trial_s = time.perf_counter() - began_at
    record = record.model_copy(
        update={"outcome": Outcome.COMPLETED, "ended_at": now(), "tokens": end.tokens, "metrics": end.metrics}
    )
    tell(TrialEvent.ENDED)
    processor_s = sender_s()
    began_at = time.perf_counter()
    if tracking is not None:
        tracking.finish(status=SweepStatus.FINISHED, records=[record], folder=folder)
        assert tracking.not_taken == "", tracking.not_taken
    return Cost(trial_s, held_s, processor_s, time.perf_counter() - began_at, num_reports)


def started(folder: Path, name: str, trials: TrialStore, address: str | None) -> Tracking | None:
    """Tracking of a sweep of this one trial; None: nowhere."""
    if address is None:
        return None
    os.environ["MLFLOW_TRACKING_URI"] = address
    tracking = Tracking(folder, say=print)
    tracking.start(name=name, identity=str(folder), tags={}, params={}, store=trials)
    return tracking


def sender_s() -> float:
    """Seconds of processor that the sending thread has taken; 0 without one."""
    clocks = [time.pthread_getcpuclockid(thread.ident) for thread in threading.enumerate() if is_sender(thread)]
    return sum(time.clock_gettime(clock) for clock in clocks)


def is_sender(thread: threading.Thread) -> bool:
    """Whether a thread sends to MLflow."""
    return thread.name == "outbox"


def now() -> str:
    """The time as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def corpus(scratch: Path) -> PreparedCorpus:
    """The text that every Python carries."""
    return prepare(
        CorpusConfig(builtin="python-docs", holdout=0.02),
        TokenizerConfig(vocabulary=2000),
        PackingConfig(sequence_length=64),
        prepared_folder=scratch / "prepared",
        run=for_each_parcel_here,
    )


@contextmanager
def far_server(scratch: Path) -> Iterator[str]:
    """Address of an MLflow server that is a round trip of ROUND_TRIP_S away."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))
    from mlflow_server import MlflowServer, free_port

    server = MlflowServer(scratch / "server")
    (scratch / "server").mkdir()
    server.start()
    port = free_port()
    proxy = multiprocessing.get_context("spawn").Process(
        target=serve_late, args=(port, int(server.uri.rsplit(":", 1)[1]), ROUND_TRIP_S / 2), daemon=True
    )
    proxy.start()
    try:
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        proxy.terminate()
        server.kill()


def wait_for_port(port: int) -> None:
    """Return as soon as something listens there."""
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the proxy never listened")


def serve_late(port: int, target: int, delay_s: float) -> None:
    """A TCP proxy whose every packet arrives `delay_s` later, in both directions; runs until it is ended."""
    asyncio.run(_serve_late(port, target, delay_s))


async def _serve_late(port: int, target: int, delay_s: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(_pass_on(reader, to_server[1], delay_s), _pass_on(to_server[0], writer, delay_s))

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    await server.serve_forever()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Packets travel side by side: each is late by the same time, however many are on the way."""
    on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def arrive() -> None:
        while True:
            due_at, packet = await on_the_way.get()
            await asyncio.sleep(due_at - time.monotonic())
            if not packet:
                writer.close()
                return
            writer.write(packet)

    arriving = asyncio.create_task(arrive())
    try:
        while packet := await reader.read(65536):
            on_the_way.put_nowait((time.monotonic() + delay_s, packet))
    except ConnectionError:
        pass
    on_the_way.put_nowait((time.monotonic() + delay_s, b""))
    await arriving


if __name__ == "__main__":
    main()
