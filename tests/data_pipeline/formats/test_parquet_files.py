import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # noqa: F401  # Registers the extension type that unpickles.
from canaries import OF_RAY, TEXTS, parquet_with, places
from preparing import letter_tokenizer
from written_files import corpus_of, written

from data_pipeline.formats.parquet_files import open_parquet
from data_pipeline.preparation.corpus_check import check
from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.reading.pieces import pieces_of
from data_pipeline.reading.table_rows import open_table
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError, PackingConfig, TokenizerConfig
from data_pipeline.schema.user_errors import InputFault

PLACES = sorted(places(Path("unused")))
UNREGISTERED = "example.unheard_of"


def checked(path: Path) -> None:
    """As `prepare --check` and `new` read."""
    problem = check(CorpusConfig(path=str(path), text="o")).problem
    if problem is not None:
        raise CorpusError(problem)


def prepared(path: Path) -> None:
    """As `prepare`, `sweep`, `train` and `evaluate --corpus` read."""
    tokenizer = path.parent / "tokenizer.json"
    letter_tokenizer().save(str(tokenizer))
    prepare(
        CorpusConfig(path=str(path), text="o"),
        TokenizerConfig(kind="file", path=str(tokenizer)),
        PackingConfig(sequence_length=16),
        prepared_folder=path.parent / "prepared",
        run=for_each_parcel_here,
    )


def tabulated(path: Path) -> None:
    """As `embed`, `finetune`, `fill-mask --input` and `generate --input` read."""
    open_table(str(path), text="o")


@pytest.mark.parametrize("reader", [checked, prepared, tabulated])
@pytest.mark.parametrize("place", PLACES)
def test_an_extension_type_is_refused_by_every_reader_wherever_it_stands(
    tmp_path: Path, place: str, reader: Callable[[Path], None]
) -> None:
    path = parquet_with(tmp_path / "corpus", *places(tmp_path / "fired")[place])
    with pytest.raises(InputFault, match=rf"o[.\w]* \({OF_RAY}\)"):
        reader(path)
    assert not (tmp_path / "fired").exists()


def test_the_canary_fires_when_arrow_reads_the_file_by_itself(tmp_path: Path) -> None:
    path = parquet_with(tmp_path / "corpus", *places(tmp_path / "fired")["column"])
    pq.read_table(path).to_pylist()
    assert (tmp_path / "fired").exists()


@pytest.mark.parametrize("place", PLACES)
def test_a_type_that_no_library_has_registered_is_refused_all_the_same(tmp_path: Path, place: str) -> None:
    path = parquet_with(tmp_path / "corpus", *places(tmp_path / "fired", UNREGISTERED)[place])
    (kind,) = corpus_of(path).files
    assert f"({UNREGISTERED})" in str(kind.refused)


@pytest.mark.parametrize("kind", [pa.json_(), pa.uuid(), pa.bool8()], ids=str)
def test_an_extension_type_of_arrow_itself_is_refused_too(tmp_path: Path, kind: pa.BaseExtensionType) -> None:
    column = pa.ExtensionArray.from_storage(kind, pa.array([None] * len(TEXTS), kind.storage_type))
    (found,) = corpus_of(parquet_with(tmp_path / "corpus", pa.field("o", kind), column)).files
    assert f"o ({kind.extension_name})" in str(found.refused)


def test_json_as_a_type_of_parquet_is_text(tmp_path: Path) -> None:
    """Programs without Arrow write it; with Arrow's schema beside it, it would be an extension type."""
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}'] * 2))
    pq.write_table(pa.table({"text": column}), tmp_path / "corpus", store_schema=False)
    with (tmp_path / "corpus").open("rb") as stream:
        assert open_parquet(stream).read().to_pydict() == {"text": ['{"a": 1}'] * 2}


class RunsWhenMade(pa.ExtensionType):
    """A type that runs code as soon as Arrow reads a schema with it, before any value."""

    def __init__(self, fired: Path) -> None:
        self.fired = fired
        super().__init__(pa.large_binary(), "example.runs_when_made")

    def __arrow_ext_serialize__(self) -> bytes:
        return str(self.fired).encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, _storage: pa.DataType, serialized: bytes) -> "RunsWhenMade":
        Path(serialized.decode()).touch()
        return cls(Path(serialized.decode()))


@pytest.fixture
def runs_when_made(tmp_path: Path) -> Iterator[RunsWhenMade]:
    kind = RunsWhenMade(tmp_path / "fired")
    pa.register_extension_type(kind)
    yield kind
    pa.unregister_extension_type(kind.extension_name)


def test_the_schema_is_judged_before_arrow_makes_a_type_of_it(tmp_path: Path, runs_when_made: RunsWhenMade) -> None:
    column = pa.ExtensionArray.from_storage(runs_when_made, pa.array([b""] * len(TEXTS), pa.large_binary()))
    path = parquet_with(tmp_path / "corpus", pa.field("o", runs_when_made), column)
    (kind,) = corpus_of(path).files
    assert "o (example.runs_when_made)" in str(kind.refused)
    assert not (tmp_path / "fired").exists()
    pq.read_schema(path)
    assert (tmp_path / "fired").exists()


def test_a_second_arrow_schema_does_not_hide_the_first(tmp_path: Path) -> None:
    field, array = places(tmp_path / "fired")["column"]
    harmless = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"], "o": ["b"]}), harmless)
    metadata = {b"ARROW:schema": pq.read_metadata(harmless).metadata[b"ARROW:schema"]}
    schema = pa.schema([pa.field("text", pa.string()), field], metadata=metadata)
    pq.write_table(pa.Table.from_arrays([pa.array(TEXTS), array], schema=schema), tmp_path / "corpus")
    (kind,) = corpus_of(tmp_path / "corpus").files
    assert "two Arrow schemas" in str(kind.refused)


def test_compression_hides_nothing(tmp_path: Path) -> None:
    path = parquet_with(tmp_path / "plain", *places(tmp_path / "fired")["column"])
    (kind,) = corpus_of(written(tmp_path, gzip.compress(path.read_bytes()))).files
    assert f"o ({OF_RAY})" in str(kind.refused)


def harmless_of_size(path: Path, num_bytes: int) -> Path:
    """A Parquet file of this size with a column of texts; a file of another size would be refused for that alone."""
    for length in range(num_bytes):
        table = pa.table({"text": TEXTS, "o": ["a" * length, *TEXTS[1:]]})
        pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
        if path.stat().st_size == num_bytes:
            return path
    raise AssertionError("no text gives this size")


def test_a_file_that_has_changed_since_it_was_examined_is_judged_again(tmp_path: Path) -> None:
    """So is one of which `.examined.json` in a shared folder says that it was examined."""
    other = parquet_with(tmp_path / "other", *places(tmp_path / "fired")["column"])
    path = harmless_of_size(tmp_path / "corpus", other.stat().st_size)
    corpus = corpus_of(path, text="o")
    other.replace(path)
    with pytest.raises(CorpusError, match=rf"corpus: it has 1 Arrow extension types: o \({OF_RAY}\)"):
        list(pieces_of(corpus.files[0], corpus.config, file=0, piece_bytes=1 << 20))
    assert not (tmp_path / "fired").exists()


def test_columns_nested_without_end_are_refused(tmp_path: Path) -> None:
    kind = pa.string()
    for _ in range(1500):
        kind = pa.struct({"a": kind})
    with pq.ParquetWriter(tmp_path / "corpus", pa.schema({"text": kind}), store_schema=False):
        pass
    (found,) = corpus_of(tmp_path / "corpus").files
    assert "column text is nested deeper than 64 levels" in str(found.refused)


@pytest.mark.parametrize("num_lost", [1, 9, 200])
def test_a_truncated_file_is_refused_with_the_reason(tmp_path: Path, num_lost: int) -> None:
    whole = parquet_with(tmp_path / "whole", pa.field("o", pa.string()), pa.array(TEXTS)).read_bytes()
    (kind,) = corpus_of(written(tmp_path, whole[:-num_lost])).files
    assert "it does not end like Parquet" in str(kind.refused)


def test_any_byte_may_be_wrong_and_the_file_is_read_or_refused(tmp_path: Path) -> None:
    whole = parquet_with(tmp_path / "whole", pa.field("o", pa.string()), pa.array(TEXTS)).read_bytes()
    refused = []
    for place in range(4, len(whole)):
        damaged = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        refused += [kind.refused for kind in corpus_of(written(tmp_path, damaged)).files if kind.refused]
    assert {reason.split(":")[0] for reason in refused} == {"it begins like Parquet, but cannot be read"}


def test_dates_zones_and_categories_are_read_as_arrow_wrote_them(tmp_path: Path) -> None:
    table = pa.table(
        {
            "when": pa.array([0], pa.timestamp("ms", tz="Europe/Berlin")),
            "how_long": pa.array([1], pa.duration("s")),
            "category": pa.array(["a"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "corpus")
    with (tmp_path / "corpus").open("rb") as stream:
        assert open_parquet(stream).read() == pq.read_table(tmp_path / "corpus") == table
