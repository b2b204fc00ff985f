import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from preparing import letter_tokenizer, prepared_from_texts
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import RobertaProcessing
from written_files import REAL_DATA, json_lines, needs_real_data, read, written

from data_pipeline.preparation.prepare import CorpusError, PrepareProgress, prepare
from data_pipeline.reading.corpus import Corpus
from data_pipeline.reading.parcel_tasks import ParcelWork, for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.schema.manifest import read_manifest
from data_pipeline.tokens.token_blocks import PreparedCorpus
from data_pipeline.tokens.tokenizer import load_tokenizer
from patience import HANGS_AFTER_S

HEX = TokenizerConfig(kind="words", vocabulary=65_541)
SMALL_BPE = TokenizerConfig(vocabulary=600)
ROWS = PackingConfig(sequence_length=64)


@pytest.fixture(scope="module")
def two_cores() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def here(
    folder: Path, corpus: CorpusConfig, tokenizer: TokenizerConfig = SMALL_BPE, packing: PackingConfig = ROWS
) -> PreparedCorpus:
    return prepare(corpus, tokenizer, packing, prepared_folder=folder / "prepared", run=for_each_parcel_here)


def figures(prepared: PreparedCorpus) -> dict[str, Any]:
    """All that must not depend on where, how fast and from how many files a corpus was prepared."""
    manifest = prepared.manifest
    splits = {name: split.model_dump(exclude={"blocks"}) for name, split in manifest.splits.items()}
    rows = {name: report.model_dump(exclude={"row_table"}) for name, report in manifest.rows.items()}
    counts = [manifest.rows_read, manifest.rows_kept, manifest.rows_rejected, manifest.rejects, manifest.padding_share]
    return {"splits": splits, "rows": rows, "counts": counts, "tokenizer": prepared.tokenizer_path.read_text()}


def all_tokens(prepared: PreparedCorpus) -> list[np.ndarray]:
    return [blocks.rows(np.arange(blocks.num_rows)).tokens for blocks in (prepared.train, prepared.holdout)]


@pytest.mark.ray
@pytest.mark.usefixtures("two_cores")
@needs_real_data
@pytest.mark.parametrize(
    ("path", "tokenizer", "num_rows"),
    [
        ("kant/kant.txt", SMALL_BPE, 50_827),
        ("traffic_ndpi/packets.csv", HEX, 10_523),
        ("sft_en/self_instruct_conversations.jsonl", SMALL_BPE, 427),
    ],
)
def test_ray_on_two_cores_makes_the_blocks_that_one_process_makes(
    tmp_path: Path, path: str, tokenizer: TokenizerConfig, num_rows: int
) -> None:
    corpus = CorpusConfig(path=str(REAL_DATA / path))
    by_ray = prepare(corpus, tokenizer, ROWS, prepared_folder=tmp_path / "ray")
    alone = here(tmp_path, corpus, tokenizer)
    assert by_ray.manifest.rows_read == num_rows
    assert figures(by_ray) == figures(alone)
    assert by_ray.manifest.splits == alone.manifest.splits
    assert all(np.array_equal(one, two) for one, two in zip(all_tokens(by_ray), all_tokens(alone), strict=True))


@pytest.mark.ray
@pytest.mark.usefixtures("two_cores")
def test_a_hostile_template_or_tokenizer_ends_the_tasks_of_ray_with_an_error_of_input(tmp_path: Path) -> None:
    row = {"instruction": "a" * 30 + "!", "output": "b"}
    corpus = CorpusConfig(path=str(written(tmp_path, json.dumps(row) + "\n", "rows.jsonl")))
    path = tmp_path / "tokenizer.json"
    tokenizer = TokenizerConfig(kind="file", path=str(path))
    letter_tokenizer().save(str(path))
    (tmp_path / "chat_template.jinja").write_text("{% if messages | length > 1 %}{{ 'x' * 10**9 }}{% endif %}")
    with pytest.raises(CorpusError, match=r"^the chat template asks for more than"):
        prepare(corpus, tokenizer, ROWS, prepared_folder=tmp_path / "prepared")
    (tmp_path / "chat_template.jinja").unlink()
    regex = {"type": "Split", "pattern": {"Regex": "(a|a)*$"}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": regex}))
    with pytest.raises(CorpusError, match=r"^tokenizer\.json makes the tokenizers library fail"):
        prepare(corpus, tokenizer, ROWS, prepared_folder=tmp_path / "prepared")


@pytest.mark.ray
@pytest.mark.usefixtures("two_cores")
def test_built_in_corpus_is_prepared_and_reports_every_phase(tmp_path: Path) -> None:
    seen: list[PrepareProgress] = []
    corpus = CorpusConfig(builtin="python-docs")
    prepared = prepare(corpus, SMALL_BPE, ROWS, prepared_folder=tmp_path, on_progress=seen.append)
    assert list(dict.fromkeys(progress.phase for progress in seen)) == [
        "reading files",
        "judging rows",
        "training the tokenizer",
        "tokenizing",
    ]
    ends = {progress.phase: progress for progress in seen if progress.total is not None}
    assert all(progress.done == progress.total for progress in ends.values())
    assert prepared.manifest.splits["train"].num_text_bytes > 1_500_000
    assert prepared.manifest.rows_rejected == 0


@needs_real_data
def test_split_counts_and_hashes_do_not_depend_on_the_number_of_files(tmp_path: Path) -> None:
    lines = (REAL_DATA / "kant/kant.txt").read_bytes().splitlines(keepends=True)[:7_000]
    whole = written(tmp_path, b"".join(lines), "whole/all.txt")
    for number in range(7):
        written(tmp_path, b"".join(lines[number * 1000 : (number + 1) * 1000]), f"parts/{number}.txt")
    one, seven = (here(tmp_path, CorpusConfig(path=str(path))) for path in (whole, tmp_path / "parts"))
    assert figures(one) == figures(seven)
    # Files in the order of the whole: even the rows are the same.
    assert all(np.array_equal(a, b) for a, b in zip(all_tokens(one), all_tokens(seven), strict=True))


def test_split_counts_and_hashes_do_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    parts = [json_lines(*(f"file {part} text {n}" for n in range(200))) for part in range(4)]
    for order in ("0123", "3102"):
        for place, part in enumerate(order):
            written(tmp_path, parts[int(part)], f"{order}/{place}.jsonl")
    one, other = (here(tmp_path, CorpusConfig(path=str(tmp_path / order))) for order in ("0123", "3102"))
    assert one.fingerprint != other.fingerprint
    assert figures(one) == figures(other)


def test_split_counts_hashes_and_rows_do_not_depend_on_the_size_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(written(tmp_path, json_lines(*(f"text number {n}" for n in range(2000)))))
    whole = here(tmp_path / "whole", CorpusConfig(path=path))
    monkeypatch.setattr("data_pipeline.reading.pieces._READ_BYTES", 1000)
    monkeypatch.setattr("data_pipeline.reading.corpus._SMALLEST_PARCEL_BYTES", 3000)
    monkeypatch.setattr("data_pipeline.preparation.token_stream._MERGED_BLOCK_BYTES", 5000)
    parts = here(tmp_path / "parts", CorpusConfig(path=path))
    assert len(parts.manifest.splits["train"].blocks) > 5 > len(whole.manifest.splits["train"].blocks)
    assert figures(whole) == figures(parts)
    assert all(np.array_equal(a, b) for a, b in zip(all_tokens(whole), all_tokens(parts), strict=True))


def test_every_row_that_was_read_is_a_document_or_a_line_of_the_rejects(tmp_path: Path) -> None:
    rows = ['{"text": "a"}', '{"text": "a"}', '{"text": ""}', "{broken", "", '{"text": 5}', '{"text": "b"}', "7"]
    written(tmp_path, "\n".join(rows), "in/one.jsonl")
    written(tmp_path, 'id,text\n1,c\n2\n3,"open\n4,d\nid,text\n', "in/two.csv")
    written(tmp_path, bytes(500), "in/three.bin")
    written(tmp_path, gzip.compress(json_lines("e", "f").encode()) + b"junk", "in/four.gz")
    corpus = CorpusConfig(path=str(tmp_path / "in"), max_rejected=1.0, holdout=0.3, damaged="keep_what_is_whole")
    for drop in (False, True):
        prepared = here(tmp_path, corpus.model_copy(update={"drop_duplicates": drop}))
        manifest = prepared.manifest
        rejects = [json.loads(line) for line in (prepared.folder / "rejects.jsonl").read_text().splitlines()]
        assert sorted((Path(reject["file"]).name, reject["line"]) for reject in rejects) == [
            *[("four.gz", 0), ("one.jsonl", 3), ("one.jsonl", 4), ("one.jsonl", 6), ("one.jsonl", 8)],
            *[("three.bin", 0), ("two.csv", 3), ("two.csv", 4), ("two.csv", 6)],
        ]
        assert (manifest.rows_read, manifest.rows_kept, manifest.rows_rejected) == (16, 7, 9)
        assert sum(manifest.rejects.values()) == 9
        assert {file.rows_read - file.rows_kept - file.rows_rejected for file in manifest.files} == {0}
        assert manifest.rows_duplicate == 1
        assert sum(split.num_documents for split in manifest.splits.values()) == 7 - drop


def test_tokenizer_never_sees_a_text_of_the_holdout(tmp_path: Path) -> None:
    texts = [f"word{n} " * 3 for n in range(300)]
    path = str(written(tmp_path, json_lines(*texts)))
    prepared = here(tmp_path, CorpusConfig(path=path, holdout=0.3), TokenizerConfig(kind="words", vocabulary=1000))
    num_train, num_holdout = (prepared.manifest.splits[name].num_documents for name in ("train", "holdout"))
    assert num_train + num_holdout == 300
    assert prepared.vocabulary.size == 5 + num_train
    # <s> and </s> are known, the three words of each text are not.
    assert prepared.manifest.splits["holdout"].num_unknown_tokens == 3 * num_holdout > 0
    assert prepared.manifest.splits["train"].num_unknown_tokens == 0


def test_manifest_says_what_the_tokenizer_makes_of_the_corpus(tmp_path: Path) -> None:
    texts = [f"Zwölf Boxkämpfer {n}" for n in range(200)] + ["rare"]
    path = str(written(tmp_path, json_lines(*texts)))
    prepared = here(tmp_path, CorpusConfig(path=path), TokenizerConfig(kind="words", vocabulary=100, min_frequency=2))
    report = prepared.manifest.tokenizer_report
    num_tokens, num_unknown = 200 * 5 + 3, 200 + 1
    assert report.bytes_per_token == pytest.approx(sum(len(text.encode()) for text in texts) / num_tokens)
    assert report.unknown_rate == pytest.approx(num_unknown / num_tokens)
    assert (report.longest_token, report.longest_token_bytes) == ("Boxkämpfer", 11)
    assert report.tokens_per_s > 0
    assert report.training_s is not None
    assert prepared.manifest.token_dtype == "uint16"


def test_manifest_on_disk_says_the_shares_of_padding_and_truncation(tmp_path: Path) -> None:
    packing = PackingConfig(rows="one_per_row", too_long="truncate", sequence_length=8)
    prepared, encoded = prepared_from_texts(tmp_path, ["a", "bc", "defghijklm", "no"], packing)
    on_disk = json.loads((prepared.folder / "manifest.json").read_text())
    num_in_rows = sum(min(len(ids), 8) for ids in encoded)
    assert on_disk["padding_share"] == pytest.approx(1 - num_in_rows / (4 * 8))
    assert on_disk["truncated_share"] == pytest.approx(1 - num_in_rows / sum(map(len, encoded)))
    assert read_manifest(prepared.folder) == prepared.manifest


def test_a_corpus_prepared_by_an_earlier_version_is_opened_without_the_password_that_its_manifest_has(
    tmp_path: Path,
) -> None:
    prepared, _ = prepared_from_texts(tmp_path, ["a", "bc"], PackingConfig(sequence_length=8))
    path = prepared.folder / "manifest.json"
    on_disk = json.loads(path.read_text())
    on_disk["corpus"]["path"] = on_disk["files"][0]["path"] = "s3://KEY:CANARY@bucket/rows.jsonl"
    path.write_text(json.dumps(on_disk))
    manifest = read_manifest(prepared.folder)
    assert manifest.corpus.path == manifest.files[0].path == "s3://***@bucket/rows.jsonl"


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65_541, "uint32"), (65_536, "uint16")])
def test_tokens_take_two_bytes_where_the_vocabulary_allows(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    words = {f"{number:x}": number for number in range(5, vocabulary)}
    special = {token: number for number, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))}
    tokenizer = Tokenizer(models.WordLevel(special | words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = [f"{vocabulary - 1:x} {number:x}" for number in range(5, 40)]
    path = str(written(tmp_path, json_lines(*texts)))
    given = TokenizerConfig(kind="file", path=str(tmp_path / "tokenizer.json"))
    prepared = here(tmp_path, CorpusConfig(path=path), given)
    assert prepared.manifest.token_dtype == dtype == prepared.train.block_tokens(0).dtype.name
    assert int(prepared.train.block_tokens(0).max()) == vocabulary - 1


def test_equal_texts_stand_on_one_side_of_the_holdout(tmp_path: Path) -> None:
    texts = [f"text {n % 300}" for n in range(900)]
    prepared, _ = prepared_from_texts(tmp_path, texts, PackingConfig(rows="one_per_row", sequence_length=16))
    train, holdout = (set(map(tuple, tokens.tolist())) for tokens in all_tokens(prepared))
    assert len(train) + len(holdout) == 300
    assert not train & holdout


def test_duplicates_are_dropped_where_asked_and_counted(tmp_path: Path) -> None:
    texts = [f"text {n % 300}" for n in range(900)]
    kept, encoded = prepared_from_texts(tmp_path, texts, ROWS, drop_duplicates=True)
    assert kept.manifest.rows_duplicate == 600
    assert sum(split.num_documents for split in kept.manifest.splits.values()) == 300
    assert sum(split.num_tokens for split in kept.manifest.splits.values()) == sum(map(len, encoded[:300]))
    assert kept.manifest.rows_read == kept.manifest.rows_kept == 900


def test_holdout_of_a_tiny_corpus_is_not_empty(tmp_path: Path) -> None:
    prepared, _ = prepared_from_texts(tmp_path, ["one", "two", "three"], ROWS, holdout=0.0001)
    assert [prepared.manifest.splits[name].num_documents for name in ("train", "holdout")] == [2, 1]


@needs_real_data
def test_empty_cells_stop_preparation_with_a_table_of_reasons(tmp_path: Path) -> None:
    path = str(REAL_DATA / "traffic_ndpi/payloads_with_empty_cells.csv")
    with pytest.raises(CorpusError, match=r"(?s)2,009 of 6,338 rows .* 31\.7%.*max_rejected: 32%.*2,009 .*empty text"):
        here(tmp_path, CorpusConfig(path=path), HEX)
    assert not [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()]


@needs_real_data
def test_more_rejects_go_on_where_allowed_and_stop_again_where_not(tmp_path: Path) -> None:
    path = str(REAL_DATA / "traffic_ndpi/payloads_with_empty_cells.csv")
    prepared = here(tmp_path, CorpusConfig(path=path, max_rejected="40%"), HEX)
    rejects = [json.loads(line) for line in (prepared.folder / "rejects.jsonl").read_text().splitlines()]
    assert prepared.manifest.rejects == {"empty text": 2009}
    assert len(rejects) == 2009
    assert set(rejects[0]) == {"file", "line", "reason", "excerpt"}
    first = Path(path).read_text().splitlines()[rejects[0]["line"] - 1]
    assert first.startswith(",")
    with pytest.raises(CorpusError, match=r"31\.7%"):
        here(tmp_path, CorpusConfig(path=path, max_rejected="10%"), HEX)


def test_corpus_without_a_usable_row_stops_whatever_is_allowed(tmp_path: Path) -> None:
    path = written(tmp_path, '{"text": ""}\n{"text": 3}\n')
    with pytest.raises(CorpusError, match=r"no row of .* can be used: 2 rows read, none kept"):
        here(tmp_path, CorpusConfig(path=str(path), max_rejected=1.0))


def test_another_sequence_length_is_not_tokenized_again(tmp_path: Path) -> None:
    path = written(tmp_path, json_lines(*(f"text number {n}" for n in range(300))))
    first = here(tmp_path, CorpusConfig(path=str(path)))
    path_of_blocks = first.folder / first.manifest.splits["train"].blocks[0].name
    longer = here(tmp_path, CorpusConfig(path=str(path)), packing=PackingConfig(sequence_length=256))
    assert longer.folder != first.folder
    assert longer.manifest.splits == first.manifest.splits
    assert (longer.folder / path_of_blocks.name).samefile(path_of_blocks)
    assert np.array_equal(all_tokens(longer)[0].ravel()[:1000], all_tokens(first)[0].ravel()[:1000])


def test_whatever_changes_tokens_changes_the_fingerprint_and_nothing_else_does(tmp_path: Path) -> None:
    texts = [f"text number {n}" for n in range(300)]
    path = written(tmp_path, json_lines(*texts), "one")
    base = here(tmp_path, CorpusConfig(path=str(path))).fingerprint
    moved = written(tmp_path, json_lines(*texts), "two")
    assert here(tmp_path, CorpusConfig(path=str(moved), max_rejected=0.5)).fingerprint == base
    others = [
        here(tmp_path, CorpusConfig(path=str(path), holdout=0.5)).fingerprint,
        here(tmp_path, CorpusConfig(path=str(path)), TokenizerConfig(vocabulary=300)).fingerprint,
        here(tmp_path, CorpusConfig(path=str(path)), packing=PackingConfig(sequence_length=65)).fingerprint,
        here(tmp_path, CorpusConfig(path=str(written(tmp_path, json_lines(*texts, "x"), "one")))).fingerprint,
    ]
    assert len({base, *others}) == 5


PREPARE = """
import sys, time
from pathlib import Path
from data_pipeline.reading import parcel_tasks
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.preparation.prepare import prepare
folder, stands_at = Path(sys.argv[2]), int(sys.argv[3])
def slowly(*arguments):
    for result in parcel_tasks.for_each_parcel_here(*arguments):
        time.sleep(0.1)
        if len(list(folder.glob(".work-*/0*.json"))) == stands_at:
            print("stands", flush=True)
            sys.stdin.readline()
        yield result
corpus = CorpusConfig(path=sys.argv[1], drop_duplicates=True)
tokenizer, packing = TokenizerConfig(vocabulary=600), PackingConfig(sequence_length=64)
prepared = prepare(corpus, tokenizer, packing, prepared_folder=folder, run=slowly)
print(prepared.folder)
"""


def start(corpus: Path, folder: Path, *, stands_at: int = -1) -> subprocess.Popen[str]:
    """A preparation that stands still when this number of parcels is done, until it reads a line or is killed.

    The default stands still never. At 0, one of two preparations would hold the lock and wait for input that the test
    sends only after the other.
    """
    arguments = [sys.executable, "-c", PREPARE, str(corpus), str(folder), str(stands_at)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(arguments, text=True, env=environment, **pipes)


def parcels_done(preparation: subprocess.Popen[str], folder: Path) -> dict[str, int]:
    """When each parcel was written, once the preparation stands still."""
    assert preparation.stdout is not None
    assert any(line == "stands\n" for line in preparation.stdout), "it ended before"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(".work-*/0*.json")}


@pytest.fixture(scope="module")
def four_parcels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = (f"{n} the quick brown fox jumps over the lazy dog" for n in range(35_000))
    return written(tmp_path_factory.mktemp("corpus"), json_lines(*texts))


@pytest.mark.ray
def test_killed_preparation_looks_unfinished_and_goes_on_where_it_stopped(tmp_path: Path, four_parcels: Path) -> None:
    killed = start(four_parcels, tmp_path / "prepared", stands_at=2)
    written_at = parcels_done(killed, tmp_path / "prepared")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(written_at) == 2
    assert not [path for path in (tmp_path / "prepared").iterdir() if not path.name.startswith(".")]

    resumed = start(four_parcels, tmp_path / "prepared", stands_at=3)
    again = parcels_done(resumed, tmp_path / "prepared")
    assert len(again) == 3
    assert written_at.items() <= again.items()
    said, _ = resumed.communicate("\n")
    assert resumed.returncode == 0, said
    corpus = CorpusConfig(path=str(four_parcels), drop_duplicates=True)
    after, fresh = here(tmp_path, corpus), here(tmp_path / "fresh", corpus)
    assert after.manifest.splits == fresh.manifest.splits
    assert figures(after) == figures(fresh)


def test_corpus_read_once_for_a_given_tokenizer_gives_what_reading_twice_gives(tmp_path: Path) -> None:
    rows = "".join(json_lines(f"text {n}") if n % 7 else "{broken\n" for n in range(700))
    path = str(written(tmp_path, rows))
    twice = here(tmp_path / "twice", CorpusConfig(path=path, max_rejected=0.2))
    given = TokenizerConfig(kind="file", path=str(twice.tokenizer_path))
    once = here(tmp_path / "once", CorpusConfig(path=path, max_rejected=0.2), given)
    assert "judging rows" in twice.manifest.seconds
    assert set(once.manifest.seconds) == {"tokenizing"}
    assert figures(once) == figures(twice)
    assert (once.folder / "rejects.jsonl").read_bytes() == (twice.folder / "rejects.jsonl").read_bytes()
    assert once.manifest.rows_rejected == 100


def test_corpus_read_once_and_broken_off_keeps_its_rejects_when_it_goes_on(tmp_path: Path) -> None:
    parts = [json_lines(*(f"{part} text {n} {'word ' * 300}" for n in range(400))) + "{broken\n" for part in range(3)]
    path = str(written(tmp_path, "".join(parts)))
    letter_tokenizer().save(str(tmp_path / "tokenizer.json"))
    arguments = CorpusConfig(path=path), TokenizerConfig(kind="file", path=str(tmp_path / "tokenizer.json")), ROWS
    whole = prepare(*arguments, prepared_folder=tmp_path / "whole", run=for_each_parcel_here)

    def broken_off(corpus: Corpus, work: ParcelWork) -> Iterator[dict[str, Any]]:
        yield from islice(for_each_parcel_here(corpus, work), 2)
        raise OSError("power is gone")

    with pytest.raises(OSError, match="power is gone"):
        prepare(*arguments, prepared_folder=tmp_path / "resumed", run=broken_off)
    (work,) = (tmp_path / "resumed").glob(".work-*")
    assert len(list(work.glob("*.judged.json"))) == 2
    resumed = prepare(*arguments, prepared_folder=tmp_path / "resumed", run=for_each_parcel_here)
    assert figures(resumed) == figures(whole)
    assert (resumed.folder / "rejects.jsonl").read_bytes() == (whole.folder / "rejects.jsonl").read_bytes()
    assert resumed.manifest.rows_rejected == 3


@pytest.mark.ray
def test_two_preparations_at_once_make_it_once(tmp_path: Path, four_parcels: Path) -> None:
    # Neither stands still: the other one, which waits for it, may be asked for its answer first.
    both = [start(four_parcels, tmp_path / "prepared", stands_at=-1) for _ in range(2)]
    answers = [process.communicate(timeout=HANGS_AFTER_S)[0].splitlines()[-1] for process in both]
    assert answers[0] == answers[1]
    assert [process.returncode for process in both] == [0, 0]
    assert [path.name for path in (tmp_path / "prepared").iterdir() if not path.name.startswith(".")] == [
        Path(answers[0]).name
    ]


@needs_real_data
def test_line_by_line_rows_of_kantaibert_are_those_of_its_own_recipe(tmp_path: Path) -> None:
    """LineByLineTextDataset: every line that is not blank, <s> .. </s>, truncated to the block."""
    lines = read(REAL_DATA / "kant/kant.txt").texts[:3000]
    path = written(tmp_path, "\n".join(lines), "kant.txt")
    packing = PackingConfig(rows="one_per_row", too_long="truncate", sequence_length=16)
    prepared = here(tmp_path, CorpusConfig(path=str(path)), packing=packing)
    reference = Tokenizer.from_file(str(prepared.tokenizer_path))
    reference.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    reference.enable_truncation(16)
    reference.enable_padding(length=16, pad_id=1, pad_token="<pad>")
    expected = sorted(found.ids for found in reference.encode_batch(lines))
    assert sorted(row for tokens in all_tokens(prepared) for row in tokens.tolist()) == expected


def test_dialogues_predict_the_assistants_tokens_only(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "why is that?"}, {"role": "assistant", "content": "because"}]
    others = [turns[0], {"role": "assistant", "content": "who knows"}]
    path = written(tmp_path, "".join(json.dumps({"conversations": row}) + "\n" for row in (turns, turns, others)))
    prepared = here(tmp_path, CorpusConfig(path=str(path)), TokenizerConfig(vocabulary=300, special_tokens="minimind"))
    tokenizer = load_tokenizer(prepared.tokenizer_path)
    rows = prepared.train.rows(np.arange(prepared.train.num_rows))
    assert rows.is_target is not None
    predicted = tokenizer.decode(rows.tokens[rows.is_target].tolist(), skip_special_tokens=False)
    assert set(predicted.removesuffix("</s>").split("</s>")) <= {"because", "who knows"}


def test_one_document_cannot_be_split_and_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, "a book\nof two lines\n")
    with pytest.raises(CorpusError, match=r"one document only .* corpus\.documents: lines or paragraphs"):
        here(tmp_path, CorpusConfig(path=str(path), documents="files"))


@needs_real_data
def test_second_preparation_takes_less_than_a_second(tmp_path: Path) -> None:
    corpus = CorpusConfig(path=str(REAL_DATA / "traffic_ndpi/flows_etbert.tsv"))

    def no_parcels(*_: object) -> Iterator[dict[str, Any]]:
        raise AssertionError("the corpus is read again")

    started_at = time.process_time()
    first = here(tmp_path, corpus, HEX)
    first_s = time.process_time() - started_at
    second = prepare(corpus, HEX, ROWS, prepared_folder=tmp_path / "prepared", run=no_parcels)
    second_s = time.process_time() - started_at - first_s
    assert second.fingerprint == first.fingerprint
    # A tenth of the first, on any processor: where that takes 1.2 s, 0.1 s.
    assert second_s < first_s / 4
