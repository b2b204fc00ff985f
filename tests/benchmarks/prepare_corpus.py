"""How fast a corpus is prepared and read, and in how much memory, as ratios measured in one run on one machine.

    python tests/benchmarks/prepare_corpus.py [--quick] [--only speed|memory] [--megabytes 100] [--memory 10 1000]

The corpus is the English books and Kant of ../shared/data, a paragraph a row of JSONL, repeated with a changing first
word until it is large enough. The tokenizers library alone, preparation and Hugging Face `datasets.map` (of the
`benchmarks` extra) take turns; the ratios are medians over the rounds. Memory is the peak of fresh processes that
prepare two sizes, object store included. The last line is JSON.

--quick: one round of 3 MB and no comparison of memory, below a minute. Otherwise below 15 minutes on two cores;
memory, half of it, needs no quiet machine and can be measured apart.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NUM_CORES = 2
Answer = TypeVar("Answer")
AT_ONCE = 1000
NUM_STEPS = 8

# Peers in processes of their own, imports not timed. The first is the most that `map` can do: nothing but the tokenizer
# library's fastest call. The second is what Transformers' run_mlm.py does from a file to rows that can be trained on.
MAP_ALONE = """
import json, os, sys, time
os.environ["TOKENIZERS_PARALLELISM"] = "false"
from datasets import load_dataset
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[2])
def encode(batch):
    return {"input_ids": [found.ids for found in tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)]}
data = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[3])
started_at = time.monotonic()
data.map(encode, batched=True, num_proc=int(sys.argv[4]), remove_columns=["text"], load_from_cache_file=False)
print(json.dumps(time.monotonic() - started_at))
"""
RECIPE = """
import json, os, sys, time
from itertools import chain
os.environ["TOKENIZERS_PARALLELISM"] = "false"
from datasets import load_dataset
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[2])
def encode(batch):
    return tokenizer(batch["text"], return_special_tokens_mask=True)
def group(batch):
    joined = {name: list(chain(*columns)) for name, columns in batch.items()}
    length = len(joined["input_ids"]) // 128 * 128
    return {name: [column[at : at + 128] for at in range(0, length, 128)] for name, column in joined.items()}
settings = {"batched": True, "num_proc": int(sys.argv[4]), "load_from_cache_file": False}
started_at = time.monotonic()
data = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[3])
data.map(encode, remove_columns=["text"], **settings).map(group, **settings)
print(json.dumps(time.monotonic() - started_at))
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--only", choices=["speed", "memory"])
    arguments.add_argument("--megabytes", type=int, default=100)
    arguments.add_argument("--memory", type=int, nargs=2, metavar="MEGABYTES", default=[10, 1000])
    asked = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="prepare-benchmark-"))
    try:
        result: dict[str, Any] = {"ratios": {}}
        if asked.quick:
            result = compare_speed(folder, megabytes=3, rounds=1)
        elif asked.only != "memory":
            result = compare_speed(folder, megabytes=asked.megabytes, rounds=3)
        if not asked.quick and asked.only != "speed":
            result["ratios"] |= compare_memory(folder, asked.memory)
    finally:
        shutil.rmtree(folder)
    print(json.dumps({"benchmark": "prepare_corpus"} | result))


def compare_speed(folder: Path, *, megabytes: int, rounds: int) -> dict[str, Any]:
    import ray

    from data_pipeline.preparation.prepare import prepare
    from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig

    path = write_corpus(folder / "corpus.jsonl", megabytes)
    tokenizer_path = write_tokenizer(folder, path)
    tokenizer = TokenizerConfig(kind="file", path=str(tokenizer_path))
    corpus = CorpusConfig(path=str(path))

    ray.init("local", num_cpus=NUM_CORES, include_dashboard=False, log_to_driver=False, logging_level="error")
    warm_up = write_corpus(folder / "small.jsonl", 2)
    prepare(CorpusConfig(path=str(warm_up)), tokenizer, PackingConfig(), prepared_folder=folder / "warm-up")
    bare_s, prepare_s, again_s, map_s, recipe_s, num_tokens = [], [], [], [], [], 0
    for number in range(rounds):
        took_s, num_tokens = in_fresh_process(bare_encoding, path, tokenizer_path)
        bare_s.append(took_s)
        for times in (prepare_s, again_s):
            started_at = time.monotonic()
            prepared = prepare(corpus, tokenizer, PackingConfig(), prepared_folder=folder / f"prepared-{number}")
            times.append(time.monotonic() - started_at)
        map_s.append(peer(MAP_ALONE, path, tokenizer_path))
        recipe_s.append(peer(RECIPE, path, tokenizer_path))
        names = {"bare": bare_s, "prepare": prepare_s, "map": map_s, "recipe": recipe_s}
        print(f"round {number + 1}: " + ", ".join(f"{name} {times[-1]:.1f} s" for name, times in names.items()))
    ray.shutdown()

    over_bare = median_ratio(bare_s, prepare_s)
    over_map = median_ratio(map_s, prepare_s)
    over_recipe = median_ratio(recipe_s, prepare_s)
    print(f"bare encode_batch_fast, {NUM_CORES} threads:  {num_tokens / np.median(bare_s):>12,.0f} tokens/s")
    print(f"prepare, files to blocks:             {num_tokens / np.median(prepare_s):>12,.0f} tokens/s")
    print(f"datasets.map, that call alone:        {num_tokens / np.median(map_s):>12,.0f} tokens/s")
    print(f"datasets.map, as in run_mlm.py:       {num_tokens / np.median(recipe_s):>12,.0f} tokens/s")
    print(f"prepare / bare:                       {over_bare:>12.2f}            target 0.85")
    print(f"prepare / datasets.map as run_mlm:    {over_recipe:>12.2f}            target 1.3")
    print(f"prepare / datasets.map alone:         {over_map:>12.2f}            (texts in Arrow before, no rows after)")
    print(f"second preparation:                   {np.median(again_s):>12.2f} s          target 1 s")
    reading = compare_reading(prepared.folder)
    ratios = {
        "prepare_over_bare": over_bare,
        "prepare_over_datasets_recipe": over_recipe,
        "prepare_over_datasets_map_alone": over_map,
    } | reading
    return {"ratios": ratios, "second_preparation_s": float(np.median(again_s))}


def median_ratio(theirs_s: list[float], ours_s: list[float]) -> float:
    """Of neighbours in time, so that a slow minute of the machine meets both."""
    return float(np.median([theirs / ours for theirs, ours in zip(theirs_s, ours_s, strict=True)]))


def compare_reading(folder: Path) -> dict[str, float]:
    """Batches read and masked, against training a model of system B's shape on the same cores."""
    import torch

    from core.models.model_factory import build_model
    from core.settings.model_config import ModelConfig
    from data_pipeline.tokens.batches import BatchSource
    from data_pipeline.tokens.token_blocks import open_prepared

    prepared = open_prepared(folder)
    source = BatchSource(prepared.train, prepared.vocabulary, masking_rate=0.15, seed=0)
    position, started_at, num_tokens = 0, time.monotonic(), 0
    while time.monotonic() - started_at < 5:
        shard = source.shard(position=position, batch_size=64, rank=0, num_workers=1)
        num_tokens += source.batch(shard, 0, 64).num_tokens
        position += 64
    reading = num_tokens / (time.monotonic() - started_at)
    print(f"masked batches read:                  {reading:>12,.0f} tokens/s")

    torch.set_num_threads(NUM_CORES)
    shape = ModelConfig(family="decoder", layers=8, width=512, heads=32, kv_heads=8, sequence_length=128)
    model = build_model(shape, prepared.vocabulary.size)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    causal = BatchSource(prepared.train, prepared.vocabulary, masking_rate=None, seed=0)
    data_s, step_s = [], []
    for step in range(NUM_STEPS + 1):
        asked_at = time.monotonic()
        shard = causal.shard(position=16 * step, batch_size=16, rank=0, num_workers=1)
        batch = causal.batch(shard, 0, 16)
        started_at = time.monotonic()
        data_s.append(started_at - asked_at)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.hidden_states(batch.inputs_BT).flatten(0, 1).index_select(0, batch.positions_P)
            loss = torch.nn.functional.cross_entropy(model.logits(hidden).float(), batch.labels_P)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step_s.append(time.monotonic() - started_at)
    # The first step makes the optimizer's state and maps the blocks.
    training = 16 * 128 / float(np.median(step_s[1:]))
    waiting = sum(data_s[1:]) / (sum(data_s[1:]) + sum(step_s[1:]))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"training {num_parameters / 1e6:.0f} M parameters:             {training:>12,.0f} tokens/s")
    print(f"reading / training:                   {reading / training:>12.0f}            target 20")
    print(f"share of time that training waits:    {waiting:>12.2%}            target 1 %")
    return {"reading_over_training": reading / training, "share_of_time_waiting_for_data": waiting}


def compare_memory(folder: Path, sizes: list[int]) -> dict[str, float]:
    tokenizer_path = write_tokenizer(folder, write_corpus(folder / "sample.jsonl", 5))
    peaks = {}
    for megabytes in sizes:
        path = write_corpus(folder / f"{megabytes}.jsonl", megabytes)
        peaks[megabytes] = in_fresh_process(peak_of_preparing, path, tokenizer_path)
        print(f"peak memory of preparing {megabytes:>5} MB:       {peaks[megabytes] / 2**20:>8.0f} MiB")
    ratio = peaks[sizes[1]] / peaks[sizes[0]]
    print(f"ratio:                                   {ratio:>8.2f}          target 1.20")
    return {f"memory_of_{sizes[1]}_over_{sizes[0]}_megabytes": ratio}


def peak_of_preparing(path: Path, tokenizer_path: Path) -> int:
    """Largest sum over this process and all below it of memory that is theirs, shared memory counted once."""
    import ray

    from data_pipeline.preparation.prepare import prepare
    from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig

    peak, is_over = [0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.2):
            peak[0] = max(peak[0], proportional_memory(os.getpid()))

    ray.init("local", num_cpus=NUM_CORES, include_dashboard=False, log_to_driver=False, object_store_memory=300 * 2**20)
    watcher = threading.Thread(target=watch)
    watcher.start()
    tokenizer = TokenizerConfig(kind="file", path=str(tokenizer_path))
    prepare(CorpusConfig(path=str(path)), tokenizer, PackingConfig(), prepared_folder=path.with_suffix(".prepared"))
    is_over.set()
    watcher.join()
    ray.shutdown()
    return peak[0]


def proportional_memory(pid: int) -> int:
    """PSS less file pages (the kernel drops those when it must) of a process and all that it started."""
    total = 0
    pending = [pid]
    while pending:
        process = pending.pop()
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            for task in Path(f"/proc/{process}/task").iterdir():
                pending += map(int, (task / "children").read_text().split())
        except OSError:
            continue
        for line in rollup.splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) * 1024
    return total


def bare_encoding(path: Path, tokenizer_path: Path) -> tuple[float, int]:
    """Seconds and tokens of the tokenizers library alone, texts in memory, its own threads."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["RAYON_NUM_THREADS"] = str(NUM_CORES)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    tokenizer.encode_batch_fast(texts[:AT_ONCE], add_special_tokens=False)
    started_at = time.monotonic()
    num_tokens = 0
    for start in range(0, len(texts), AT_ONCE):
        found = tokenizer.encode_batch_fast(texts[start : start + AT_ONCE], add_special_tokens=False)
        num_tokens += sum(map(len, found))
    return time.monotonic() - started_at, num_tokens


def peer(script: str, path: Path, tokenizer_path: Path) -> float:
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        arguments = [str(path), str(tokenizer_path), cache, str(NUM_CORES)]
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def write_corpus(path: Path, megabytes: int) -> Path:
    """Paragraphs of real books as JSONL, repeated with the number of the repetition in front: no two rows are equal."""
    sources = [*sorted((REAL_DATA / "english/books").glob("*.txt")), REAL_DATA / "kant/kant.txt"]
    paragraphs = [part for source in sources for part in source.read_text().split("\n\n") if part.strip()]
    size = 0
    with path.open("w") as file:
        for row in repeated(paragraphs):
            size += file.write(row)
            if size >= megabytes * 10**6:
                return path
    raise AssertionError("repeated() never ends")


def repeated(paragraphs: list[str]) -> Iterator[str]:
    for number in count():
        for paragraph in paragraphs:
            yield json.dumps({"text": f"{number} {paragraph}"}, ensure_ascii=False) + "\n"


def write_tokenizer(folder: Path, corpus: Path) -> Path:
    from data_pipeline.schema.corpus_config import TokenizerConfig
    from data_pipeline.tokens.tokenizer import train_tokenizer

    with corpus.open() as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(20_000), strict=False)]
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=8192), texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def in_fresh_process(work: Callable[..., Answer], *arguments: object) -> Answer:
    """Run apart, so that threads, caches and memory of one measurement do not meet those of another."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


if __name__ == "__main__":
    main()
