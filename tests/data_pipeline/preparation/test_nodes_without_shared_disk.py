import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from preparing import letter_tokenizer
from ray.cluster_utils import Cluster
from written_files import json_lines, written

from data_pipeline.preparation.node_copies import all_nodes_see, open_on_this_node, serve_copies
from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from patience import HANGS_AFTER_S, wait_until

TEXTS = [f"text number {n}" for n in range(300)]
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def folder_of_one_node(tmp_path: Path) -> Iterator[Path]:
    """A folder that the second node of a cluster has, too, but as a disk of its own: a mount that only it sees."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("no right to mount (run as root)")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    join = 'mount -t tmpfs none "$1" && exec "$2" start "--address=$3" --num-cpus=1 --block'
    ray_command = Path(sys.executable).with_name("ray")
    elsewhere = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", join, "sh", str(folder), str(ray_command), cluster.address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ray.init(address=cluster.address, log_to_driver=False)
    wait_until(lambda: len(ray.nodes()) == 2, "the second node never joined")
    yield folder
    ray.shutdown()
    elsewhere.terminate()
    elsewhere.wait(HANGS_AFTER_S)
    cluster.shutdown()


def test_nodes_with_a_disk_each_prepare_together_and_train_from_one_copy_each(folder_of_one_node: Path) -> None:
    folder = folder_of_one_node
    corpus = CorpusConfig(path=str(written(folder, json_lines(*TEXTS))))
    letter_tokenizer().save(str(folder / "tokenizer.json"))
    tokenizer, packing = TokenizerConfig(kind="file", path=str(folder / "tokenizer.json")), PackingConfig()
    assert not all_nodes_see(folder)
    together = prepare(corpus, tokenizer, packing, prepared_folder=folder / "together")
    alone = prepare(corpus, tokenizer, packing, prepared_folder=folder / "alone", run=for_each_parcel_here)
    assert together.manifest.splits == alone.manifest.splits

    @ray.remote(num_cpus=0)
    def open_there(server: Any) -> tuple[bool, int, dict[str, int]]:
        was_there = together.folder.is_dir()
        tokens = open_on_this_node(together.folder, server).train.rows(np.arange(10)).tokens
        times = {path.name: path.stat().st_mtime_ns for path in together.folder.glob("*.arrow")}
        return was_there, int(tokens.sum()), times

    here = ray.get_runtime_context().get_node_id()
    (other,) = [node["NodeID"] for node in ray.nodes() if node["NodeID"] != here]
    there = open_there.options(label_selector={"ray.io/node-id": other})
    server = serve_copies(together.folder)
    (was_there, tokens, fetched_at), again = (ray.get(there.remote(server)) for _ in range(2))
    assert not was_there
    assert tokens == int(together.train.rows(np.arange(10)).tokens.sum())
    assert again == (True, tokens, fetched_at)
