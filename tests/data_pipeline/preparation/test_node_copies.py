from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from preparing import prepared_from_texts
from ray.cluster_utils import Cluster
from written_files import json_lines, written

from data_pipeline.preparation.encode import EncodeWork
from data_pipeline.preparation.node_copies import all_nodes_see, open_on_this_node, serve_copies
from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig

TEXTS = [f"text number {n}" for n in range(300)]
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.usefixtures("two_nodes")
def test_corpus_is_prepared_on_two_nodes_as_on_one(tmp_path: Path) -> None:
    corpus = CorpusConfig(path=str(written(tmp_path, json_lines(*TEXTS))))
    tokenizer, packing = TokenizerConfig(vocabulary=300), PackingConfig(sequence_length=16)
    on_two = prepare(corpus, tokenizer, packing, prepared_folder=tmp_path / "two")
    on_one = prepare(corpus, tokenizer, packing, prepared_folder=tmp_path / "one", run=for_each_parcel_here)
    assert on_two.manifest.splits == on_one.manifest.splits


@pytest.mark.usefixtures("two_nodes")
def test_disk_of_one_machine_is_seen_by_all_its_nodes(tmp_path: Path) -> None:
    assert all_nodes_see(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("two_nodes")
def test_node_without_the_folder_fetches_it_once_and_reads_the_same_rows(tmp_path: Path) -> None:
    prepared, _ = prepared_from_texts(tmp_path, TEXTS, PackingConfig(sequence_length=16))
    server = serve_copies(prepared.folder)
    elsewhere = tmp_path / "other-node" / prepared.folder.name
    copy = open_on_this_node(elsewhere, server)
    changed_at = {path.name: path.stat().st_mtime_ns for path in elsewhere.glob("*.arrow")}
    again = open_on_this_node(elsewhere, server)
    rows = np.arange(prepared.train.num_rows)
    assert np.array_equal(again.train.rows(rows).tokens, prepared.train.rows(rows).tokens)
    assert copy.manifest == prepared.manifest
    assert {path.name: path.stat().st_mtime_ns for path in elsewhere.glob("*.arrow")} == changed_at


def test_blocks_sent_by_tasks_without_this_disk_are_those_that_tasks_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_by_tasks, _ = prepared_from_texts(tmp_path / "shared", TEXTS, PackingConfig(sequence_length=16))
    asked = EncodeWork.__init__

    def without_disk(self: EncodeWork, **settings: object) -> None:
        asked(self, **(settings | {"folder": None}))  # type: ignore[arg-type]

    monkeypatch.setattr(EncodeWork, "__init__", without_disk)
    sent, _ = prepared_from_texts(tmp_path / "sent", TEXTS, PackingConfig(sequence_length=16))
    assert sent.manifest.splits == written_by_tasks.manifest.splits
