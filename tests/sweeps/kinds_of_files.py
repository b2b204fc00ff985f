"""Every kind of file that pretune reads and another may have written: an honest one, how it is read, traps in it.

Each kind lies in a folder of its own. `read` is the reader that the commands use. A trap changes an honest folder so
that a reader that runs what it reads would create a file (canaries.py).
"""

import bz2
import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zstandard
from canaries import TEXTS, Canary, parquet_with, places
from mlflow.tracking import MlflowClient
from preparing import prepared_from_texts
from swept_folder import example_records, refuse_some, write_frontier, write_results
from written_files import json_lines

from conversing import conversation_lines
from core.model_files.adapter_folder import import_adapted, save_adapter
from core.model_files.checkpoint import newest_checkpoint, restore, save_checkpoint
from core.models.lora import add_lora
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.training_config import LoraConfig, TrainingConfig
from core.step.optimizer import build_optimizer
from data_pipeline.files.whole_files import hash_file
from data_pipeline.preparation.corpus_check import check
from data_pipeline.preparation.duplicates import find_duplicates
from data_pipeline.preparation.survey import sampled_texts
from data_pipeline.reading.corpus_files import find_files
from data_pipeline.reading.file_inspection import examine_files
from data_pipeline.reading.table_rows import columns_of, open_table, table_rows
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.arrow_files import arrow_bytes
from data_pipeline.tokens.token_blocks import open_prepared
from small_models import SMALL, exported
from sweep_examples import TINY
from sweeps.finetuning.finetune_request import request_of_file
from sweeps.memory_knowledge.measurement_store import KeptMeasurements
from sweeps.memory_knowledge.memory_observations import MemoryObservation, MemoryStore
from sweeps.memory_knowledge.micro_batch_store import MeasuredShape
from sweeps.records.results_folder import ended_sweeps
from sweeps.records.sweep_lock import holder_in
from sweeps.records.trial_records import TrialStore
from sweeps.report.compare_sweeps import read_summary
from sweeps.settings.sweep_file import load_sweep_file
from sweeps.settings.yaml_lines import parse_value
from sweeps.trained_models.model_locator import model_at
from sweeps.trained_models.trained_model import load_trained

Trap = Callable[[Path, Canary], object]
TALK = [("user", "which color?"), ("assistant", "red")]
ESCAPES = "{{ cycler.__init__.__globals__.os.system('touch FIRED') }}{{ ''.__class__.__mro__[1].__subclasses__() }}"
YAML_TAGS = {
    "calls": "name: !!python/object/apply:os.system ['touch FIRED']\n",
    "makes": "name: !!python/object/new:type {args: [z, !!python/tuple [], {}]}\n",
    "names": "name: !!python/name:os.system\n",
}


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    make: Callable[[Path], object]
    """Writes an honest one into a folder."""
    read: Callable[[Path], object]
    files: tuple[str, ...]
    """Patterns of its files; each in turn is replaced by a pickle."""
    traps: Mapping[str, Trap] = field(default_factory=dict)


def corpus(data: bytes | str, **traps: Trap) -> Kind:
    """A corpus in one file, read as `prepare --check` and as `embed` read."""
    content = data.encode() if isinstance(data, str) else data
    return Kind(lambda folder: (folder / "corpus").write_bytes(content), read_corpus, ("corpus",), traps)


def read_corpus(folder: Path) -> None:
    path = str(folder / "corpus")
    problem = check(CorpusConfig(path=path)).problem
    if problem is not None:
        raise InputFault(problem)
    if b"assistant" not in (folder / "corpus").read_bytes():
        table = open_table(path, text=None)
        assert list(table_rows(table, columns_of(table)))


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS}), sink)
    return bytes(sink.getvalue().to_pybytes())


def parquet_traps() -> dict[str, Trap]:
    def trap(folder: Path, canary: Canary, place: str) -> None:
        column, array = places(canary.fired)[place]
        parquet_with(folder / "corpus", column.with_name("text"), array, beside="o")

    return {f"extension type in a {place}": partial(trap, place=place) for place in places(Path("unused"))}


def read_examined(folder: Path) -> object:
    config = CorpusConfig(path=str(folder / "corpus"))
    return examine_files(find_files(config), config, memory=folder / ".examined.json")


def make_prepared(folder: Path) -> None:
    prepared_from_texts(folder, TEXTS * 4, PackingConfig(sequence_length=16))


def read_prepared(folder: Path) -> None:
    (manifest,) = folder.glob("prepared/*/manifest.json")
    data = open_prepared(manifest.parent)
    data.train.rows(np.arange(data.train.num_rows))


def plant_block(folder: Path, canary: Canary, place: str) -> None:
    """A block whose size and hash the manifest has."""
    (path,) = folder.glob("prepared/*/manifest.json")
    manifest = json.loads(path.read_text())
    report = manifest["splits"]["train"]["blocks"][0]
    column, array = places(canary.fired)[place]
    block = path.parent / report["name"]
    block.unlink()
    block.write_bytes(arrow_bytes(pa.RecordBatch.from_arrays([array], schema=pa.schema([column.with_name("tokens")]))))
    report |= {"num_file_bytes": block.stat().st_size, "blake2b": hash_file(block)}
    path.write_text(json.dumps(manifest))


def make_work(folder: Path) -> None:
    """What an interrupted preparation leaves behind."""
    sample = pa.record_batch(
        {
            "first": pa.array([1, 2], pa.uint64()),
            "second": pa.array([3, 4], pa.uint64()),
            "text": pa.array(TEXTS[:2], pa.large_string()),
        }
    )
    (folder / "000000-000000.sample").write_bytes(arrow_bytes(sample))
    (folder / "000000-000000.hashes").write_bytes(np.arange(4, dtype="<u8").tobytes())


def read_work(folder: Path) -> None:
    assert list(sampled_texts(folder.glob("*.sample"), threshold=0, drop_duplicates=False)) == TEXTS[:2]
    find_duplicates(sorted(folder.glob("*.hashes")))


def plant_sample(folder: Path, canary: Canary) -> None:
    column, array = places(canary.fired)["column"]
    numbers = pa.array(range(len(array)), pa.uint64())
    schema = pa.schema([("first", pa.uint64()), ("second", pa.uint64()), column.with_name("text")])
    batch = pa.RecordBatch.from_arrays([numbers, numbers, array], schema=schema)
    (folder / "000000-000000.sample").write_bytes(arrow_bytes(batch))


def small_run() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = build_model(ModelConfig.model_validate(SMALL | {"family": "encoder"}), 300)
    optimizer = build_optimizer(model, TrainingConfig(), tokens_per_step=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


def make_checkpoint(folder: Path) -> None:
    save_checkpoint(folder, *small_run(), {"tokens": 7}, step=3)


def read_checkpoint(folder: Path) -> None:
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise InputFault("no whole checkpoint")
    restore(checkpoint, *small_run())


def torch_saved(folder: Path, canary: Canary, name: str) -> None:
    """Weights as torch writes them: a pickle in a zip file."""
    (path,) = folder.glob(name)
    torch.save({"weight": canary}, path)


def make_model(folder: Path) -> None:
    best = exported(folder, "decoder")
    (best / "chat_template.jinja").write_text("{% for one in messages %}{{ one.role }}{{ one.content }}{% endfor %}")


def read_model(folder: Path) -> None:
    trained = load_trained(folder / "best")
    assert trained.chat is not None
    trained.chat.prompt([("user", "hello")])


def bin_alone(folder: Path, canary: Canary) -> None:
    (folder / "best/model.safetensors").unlink()
    torch.save({"weight": canary}, folder / "best/pytorch_model.bin")


def code_beside(folder: Path, canary: Canary) -> None:
    """What transformers runs with `trust_remote_code`."""
    (folder / "best/modeling_evil.py").write_text(f"open({str(canary.fired)!r}, 'w')\n")
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / "best" / name
        evil = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": evil}))


def written_into(name: str, text: str) -> Trap:
    """A trap that is a text; FIRED in it is the path of the canary's file."""

    def trap(folder: Path, canary: Canary) -> None:
        (folder / name).write_text(text.replace("FIRED", str(canary.fired)))

    return trap


def make_adapter(folder: Path) -> None:
    base, lora = exported(folder, "decoder"), LoraConfig(rank=2)
    config = ModelConfig.model_validate(SMALL | {"family": "decoder"})
    model = build_model(config, 300)
    add_lora(model, config, lora)
    save_adapter(model, config, lora, base, folder / "adapter")


def make_sweep(folder: Path) -> None:
    store = TrialStore(folder / "traffic-mlm-1/trials")
    records = example_records(store, num_trials=3)
    refuse_some(store)
    (folder / "traffic-mlm-1/trials/widened.jsonl").write_text("{}\n")
    write_frontier(folder / "traffic-mlm-1", records)
    (folder / "traffic-mlm-1/summary.json").write_text(json.dumps(write_results(folder / "traffic-mlm-1", records)))


def read_sweep(folder: Path) -> None:
    store = TrialStore(folder / "traffic-mlm-1/trials")
    records = store.load_all()
    assert [list(store.reports(record)) for record in records]
    store.load_refusals()
    store.load_widenings()
    ended_sweeps(folder, "traffic-mlm")
    read_summary(folder / "traffic-mlm-1")


def make_memory(folder: Path) -> None:
    seen = MemoryObservation(
        shape="s", micro_batch_size=1, accumulates=False, masking_rate=1.0, rows_filled=100, predicted_bytes=1,
        limit_bytes=2, fits=True, trial="t", at="2026-03-02T09:00:00+00:00",
    )  # fmt: skip
    MemoryStore(folder, "cpu").add([seen], "2")
    kept_speeds(folder).add({"s": MeasuredShape(shape="s", asked=(1,), speeds=())})


def kept_speeds(folder: Path) -> KeptMeasurements[MeasuredShape]:
    return KeptMeasurements(folder / "memory/cpu-micro-batches.json", MeasuredShape, what="speeds")


def read_memory(folder: Path) -> None:
    MemoryStore(folder, "cpu").load("2")
    kept_speeds(folder).read()


def make_mlflow(folder: Path) -> None:
    """A results folder with MLflow's store, and a run with a model in it."""
    exported(folder, "decoder")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.create_experiment("pretune", artifact_location=str(folder / "mlartifacts"))
    run_id = client.create_run(experiment).info.run_id
    client.log_artifacts(run_id, str(folder / "best"), "model/artifacts/best")
    (folder / "run_id").write_text(run_id)


def read_mlflow(folder: Path) -> None:
    with model_at(f"runs:/{(folder / 'run_id').read_text()}", folder) as located:
        load_trained(located.folder)


def mlflow_code(folder: Path, canary: Canary) -> None:
    """What `mlflow models serve` runs."""
    (model,) = folder.glob("mlartifacts/*/artifacts/model")
    (model / "python_model.pkl").write_bytes(canary.pickled())
    (model / "served_model.py").write_text(f"open({str(canary.fired)!r}, 'w')\n")
    (model / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n    python_model: python_model.pkl\n"
        "    model_code_path: served_model.py\n"
    )


def read_lock(folder: Path) -> object:
    return holder_in((folder / ".lock").read_bytes())


def copy_example(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


FINETUNING = """\
name: labels
objective: classification
start: {weights_of: other}
corpus: {path: rows.tsv, text: text, label: label}
"""

KINDS: dict[str, Kind] = {
    "JSON lines": corpus(json_lines(*TEXTS)),
    "JSON array": corpus(json.dumps([{"text": text} for text in TEXTS])),
    "CSV": corpus("text,label\n" + "".join(f"{text},a\n" for text in TEXTS)),
    "plain text": corpus("\n".join(TEXTS)),
    "gzip": corpus(gzip.compress(json_lines(*TEXTS).encode())),
    "bzip2": corpus(bz2.compress(json_lines(*TEXTS).encode())),
    "zstd": corpus(zstandard.compress(json_lines(*TEXTS).encode())),
    "conversations": corpus(conversation_lines([TALK] * 8)),
    "Parquet": corpus(parquet_bytes(), **parquet_traps()),
    "notes of examined files": Kind(
        lambda folder: (folder / "corpus").write_text(json_lines(*TEXTS)), read_examined, (".examined.json",)
    ),
    "prepared corpus": Kind(
        make_prepared,
        read_prepared,
        tuple(f"prepared/*/{name}" for name in ("manifest.json", "verified.json", "tokenizer.json", "train-*.arrow")),
        {f"block with a {place}": partial(plant_block, place=place) for place in places(Path("unused"))},
    ),
    "interrupted preparation": Kind(
        make_work, read_work, ("*.sample", "*.hashes"), {"sample with an extension type": plant_sample}
    ),
    "checkpoint": Kind(
        make_checkpoint,
        read_checkpoint,
        ("step-*/model.safetensors", "step-*/optimizer.safetensors", "step-*/progress.json"),
        {
            name: partial(torch_saved, name=f"step-*/{name}.safetensors")
            for name in ("model", "optimizer")
        },
    ),
    "model": Kind(
        make_model,
        read_model,
        ("best/model.safetensors", "best/tokenizer.json", "best/tokenizer_config.json", "best/config.json",
         "best/chat_template.jinja"),
        {
            "torch.save": partial(torch_saved, name="best/model.safetensors"),
            "pytorch_model.bin": bin_alone,
            "code beside": code_beside,
            "template that escapes": written_into("best/chat_template.jinja", ESCAPES),
        },
    ),
    "adapter": Kind(
        make_adapter,
        lambda folder: import_adapted(folder / "adapter"),
        ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"),
        {"torch.save": partial(torch_saved, name="adapter/adapter_model.safetensors")},
    ),
    "sweep file": Kind(
        copy_example("sweep.yaml", TINY),
        lambda folder: load_sweep_file(folder / "sweep.yaml"),
        ("sweep.yaml",),
        {name: written_into("sweep.yaml", TINY + text) for name, text in YAML_TAGS.items()},
    ),
    "fine-tuning file": Kind(
        copy_example("finetune.yaml", FINETUNING),
        lambda folder: request_of_file(str(folder / "finetune.yaml"), []),
        ("finetune.yaml",),
        {name: written_into("finetune.yaml", FINETUNING + text) for name, text in YAML_TAGS.items()},
    ),
    "value of --set": Kind(
        copy_example("value", "5e-4"),
        lambda folder: parse_value((folder / "value").read_text(errors="replace")),
        ("value",),
        {name: written_into("value", text) for name, text in YAML_TAGS.items()},
    ),
    "results of a sweep": Kind(
        make_sweep,
        read_sweep,
        tuple(
            f"traffic-mlm-1/{name}"
            for name in ("summary.json", "trials/trial-0001/trial.json", "trials/trial-0001/reports.jsonl",
                         "trials/refused.jsonl", "trials/widened.jsonl")
        ),
    ),
    "knowledge of memory": Kind(make_memory, read_memory, ("memory/cpu.json", "memory/cpu-micro-batches.json")),
    "lock": Kind(copy_example(".lock", '{"pid": 1, "host": "h", "mark": "m"}'), read_lock, (".lock",)),
    "MLflow store": Kind(
        make_mlflow, read_mlflow, ("mlartifacts/*/artifacts/model/artifacts/best/config.json",),
        {"code of a model": mlflow_code},
    ),
}  # fmt: skip


def traps_of(kind: Kind) -> dict[str, Trap]:
    """All traps of a kind: a pickle in the place of each file, and its own."""

    def pickle_at(folder: Path, canary: Canary, pattern: str) -> None:
        found = sorted(folder.glob(pattern)) or [folder / pattern]
        found[0].unlink(missing_ok=True)
        found[0].write_bytes(canary.pickled())

    return {f"pickle as {pattern}": partial(pickle_at, pattern=pattern) for pattern in kind.files} | dict(kind.traps)


def honest(kind: Kind, folder: Path) -> Path:
    """A folder with an honest file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kind.make(folder)
    return folder
