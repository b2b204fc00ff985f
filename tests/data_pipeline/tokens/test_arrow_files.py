"""Blocks, row tables and samples that someone else has put into a shared folder, with a manifest that fits them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.data  # noqa: F401  # Registers the extension type that unpickles.
from canaries import OF_RAY, places
from preparing import prepared_from_texts

from conversing import prepared_conversations
from data_pipeline.files.whole_files import hash_file
from data_pipeline.preparation.survey import sampled_texts
from data_pipeline.schema.corpus_config import PackingConfig
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.arrow_files import DamagedBlockError, arrow_bytes, map_arrow
from data_pipeline.tokens.token_blocks import open_prepared

PLACES = sorted(places(Path("unused")))
ONE_PER_ROW = PackingConfig(sequence_length=16, rows="one_per_row")
TOKENS = pa.schema({"tokens": pa.list_(pa.uint16())})


def planted(path: Path, batch: pa.RecordBatch) -> Path:
    """An Arrow file in the place of another, with the size and the hash of the new one in the manifest beside it."""
    path.unlink(missing_ok=True)
    path.write_bytes(arrow_bytes(batch))
    manifest = path.parent / "manifest.json"
    found = json.loads(manifest.read_text())
    for report in reports_in(found):
        if report["name"] == path.name:
            report |= {"num_file_bytes": path.stat().st_size, "blake2b": hash_file(path)}
    manifest.write_text(json.dumps(found))
    return path


def reports_in(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    tables = [rows["row_table"] for rows in manifest["rows"].values() if rows["row_table"]]
    return [*(block for split in manifest["splits"].values() for block in split["blocks"]), *tables]


@pytest.mark.parametrize("place", PLACES)
def test_a_block_with_an_extension_type_is_damaged_and_unpickles_nothing(tmp_path: Path, place: str) -> None:
    data, _ = prepared_from_texts(tmp_path / "corpus", ["one text", "another"] * 20, PackingConfig(sequence_length=16))
    field, array = places(tmp_path / "fired")[place]
    block = sorted(data.folder.glob("train-*.arrow"))[0]
    planted(block, pa.RecordBatch.from_arrays([array], schema=pa.schema([field.with_name("tokens")])))
    with pytest.raises(DamagedBlockError, match=f"{block.name} has the columns tokens: .*{OF_RAY}.* and should have"):
        open_prepared(data.folder).train.rows(np.arange(2))
    assert not (tmp_path / "fired").exists()


def test_row_tables_with_extension_types_are_damaged_and_unpickle_nothing(tmp_path: Path) -> None:
    field, array = places(tmp_path / "fired")["column"]
    texts, _ = prepared_from_texts(tmp_path / "texts", ["one text", "another"] * 20, ONE_PER_ROW)
    talks = prepared_conversations(tmp_path / "talks", [[("user", f"{n}"), ("assistant", "yes")] for n in range(20)])
    for data in (texts, talks):
        table = data.folder / "rows-train.arrow"
        planted(table, pa.RecordBatch.from_arrays([array], schema=pa.schema([field.with_name("start")])))
        with pytest.raises(DamagedBlockError, match=rf"rows-train.arrow has the columns start: .*{OF_RAY}"):
            open_prepared(data.folder).train.rows(np.arange(2))
    assert not (tmp_path / "fired").exists()


def test_a_sample_with_an_extension_type_is_damaged_and_unpickles_nothing(tmp_path: Path) -> None:
    field, array = places(tmp_path / "fired")["column"]
    hashes = pa.array(range(len(array)), pa.uint64())
    schema = pa.schema([("first", pa.uint64()), ("second", pa.uint64()), field.with_name("text")])
    sample = tmp_path / "000000-000000.sample"
    sample.write_bytes(arrow_bytes(pa.RecordBatch.from_arrays([hashes, hashes, array], schema=schema)))
    with pytest.raises(DamagedBlockError, match=rf"sample has the columns .*{OF_RAY}"):
        list(sampled_texts([sample], threshold=0, drop_duplicates=False))
    assert not (tmp_path / "fired").exists()


def test_the_canary_fires_when_arrow_reads_such_a_sample_by_itself(tmp_path: Path) -> None:
    field, array = places(tmp_path / "fired")["column"]
    (tmp_path / "sample").write_bytes(arrow_bytes(pa.RecordBatch.from_arrays([array], schema=pa.schema([field]))))
    with pa.memory_map(str(tmp_path / "sample")) as source:
        pa.ipc.open_file(source).get_batch(0).to_pylist()
    assert (tmp_path / "fired").exists()


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        ({"tokens": pa.array([[1]], pa.list_(pa.int64()))}, "tokens: list<item: int64>"),
        ({"tokens": pa.array([[1]], pa.large_list(pa.uint16()))}, "tokens: large_list<item: uint16>"),
        ({"tokens": pa.array([["a"]], pa.list_(pa.string()))}, "tokens: list<item: string>"),
        ({"other": pa.array([[1]], pa.list_(pa.uint16()))}, "other: list<item: uint16>"),
        ({}, "has the columns  and"),
    ],
)
def test_another_schema_is_named_beside_the_expected_one(tmp_path: Path, columns: dict[str, Any], shown: str) -> None:
    (tmp_path / "block.arrow").write_bytes(arrow_bytes(pa.record_batch(columns)))
    with pytest.raises(DamagedBlockError) as caught:
        map_arrow(tmp_path / "block.arrow", TOKENS)
    assert shown in str(caught.value)
    assert "should have tokens: list<item: uint16>" in str(caught.value)
    assert f"delete {tmp_path}" in str(caught.value)


def test_metadata_of_a_field_is_part_of_its_schema(tmp_path: Path) -> None:
    field = TOKENS.field("tokens").with_metadata({"note": "harmless"})
    batch = pa.RecordBatch.from_arrays([pa.array([[1]], field.type)], schema=pa.schema([field]))
    (tmp_path / "block.arrow").write_bytes(arrow_bytes(batch))
    with pytest.raises(DamagedBlockError, match="note: 'harmless'"):
        map_arrow(tmp_path / "block.arrow", TOKENS)


def test_offsets_that_lead_outside_the_values_are_found(tmp_path: Path) -> None:
    """Without that, a row would be read from memory behind the file."""
    whole = arrow_bytes(pa.record_batch([pa.array([[1] * 700, [1] * 77], TOKENS.types[0])], TOKENS))
    offsets, outside = (np.array([0, 700, end], np.int32).tobytes() for end in (777, 100_000))
    assert whole.count(offsets) == 1
    (tmp_path / "block.arrow").write_bytes(whole.replace(offsets, outside))
    with pytest.raises(DamagedBlockError, match="cannot be read as an Arrow file"):
        map_arrow(tmp_path / "block.arrow", TOKENS)


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"ARROW1\0\0", b"\xff\xff\xff\xffARROW1", b"text" * 100])
def test_a_file_that_is_not_arrow_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "block.arrow").write_bytes(content)
    with pytest.raises(DamagedBlockError, match=r"block\.arrow cannot be read as an Arrow file"):
        map_arrow(tmp_path / "block.arrow", TOKENS)


def test_any_single_byte_may_be_wrong_and_the_error_is_ours(tmp_path: Path) -> None:
    whole = arrow_bytes(pa.record_batch([pa.array([[1, 2], [3]], TOKENS.types[0])], TOKENS))
    path = tmp_path / "block.arrow"
    num_damaged = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            map_arrow(path, TOKENS)
        except DamagedBlockError:
            num_damaged += 1
    assert num_damaged > 0


def test_a_block_of_another_length_than_the_manifest_says_is_damaged(tmp_path: Path) -> None:
    data, _ = prepared_from_texts(tmp_path / "corpus", ["one text", "another"] * 20, PackingConfig(sequence_length=16))
    block = sorted(data.folder.glob("train-*.arrow"))[0]
    columns = {"tokens": pa.array([[1, 2]], pa.list_(pa.uint16())), "text_bytes": pa.array([2], pa.int32())}
    planted(block, pa.record_batch(columns))
    with pytest.raises(DamagedBlockError, match="has 2 tokens and should have"):
        open_prepared(data.folder).train.rows(np.arange(2))


@pytest.mark.parametrize("name", ["/etc/passwd", "../other/train-0.arrow", "train-0.arrow\n"])
def test_a_manifest_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    data, _ = prepared_from_texts(tmp_path / "corpus", ["one text", "another"] * 20, PackingConfig(sequence_length=16))
    manifest = data.folder / "manifest.json"
    found = json.loads(manifest.read_text())
    reports_in(found)[0]["name"] = name
    manifest.write_text(json.dumps(found))
    with pytest.raises(InputFault, match=r"manifest\.json cannot be read"):
        open_prepared(data.folder)
