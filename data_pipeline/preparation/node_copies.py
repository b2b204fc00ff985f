"""Prepared corpora on clusters without a shared disk: check visibility, and copy a corpus to other nodes."""

import uuid
from pathlib import Path
from typing import Any

import ray

from data_pipeline.files.own_files import fresh_folder, make_folder, own_lock
from data_pipeline.tokens.token_blocks import PreparedCorpus, open_prepared

_PIECE_BYTES = 64 << 20


def all_nodes_see(folder: Path) -> bool:
    """True if every node of the cluster sees the files of this folder under the same path. Needs Ray."""
    here = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    others = [node["NodeID"] for node in nodes if node["Alive"] and node["NodeID"] != here]
    probe = folder / f".probe-{uuid.uuid4().hex}"
    probe.touch()
    try:
        look: Any = ray.remote(num_cpus=0)(_exists)
        return all(ray.get([look.options(label_selector={"ray.io/node-id": node}).remote(probe) for node in others]))
    finally:
        probe.unlink()


def serve_copies(folder: Path) -> Any:
    """An actor on this node that serves the files of a prepared folder to `open_on_this_node`."""
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    actor: Any = ray.remote(num_cpus=0, label_selector=here)(_FileServer)
    return actor.remote(folder)


def open_on_this_node(folder: Path, server: Any) -> PreparedCorpus:
    """The prepared corpus in a folder that may exist only on another node; each node copies it once.

    Args:
        folder: Path of the corpus, the same on all nodes.
        server: From `serve_copies`, on the node that has the corpus.

    Raises:
        DamagedBlockError: A file is missing or altered, also by an incomplete copy.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        with own_lock(folder.parent / f".lock-copy-{folder.name}"):
            if not folder.is_dir():
                _fetch(folder, server)
    return open_prepared(folder)


class _FileServer:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sizes(self) -> dict[str, int]:
        files = (path for path in self._folder.iterdir() if path.name != "verified.json" and not path.is_symlink())
        return {path.name: path.stat().st_size for path in files}

    def read(self, name: str, start: int) -> bytes:
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            return file.read(_PIECE_BYTES)


def _fetch(folder: Path, server: Any) -> None:
    partial = fresh_folder(folder.parent / f".copy-{folder.name}")
    for name, size in ray.get(server.sizes.remote()).items():
        with (partial / name).open("wb") as file:
            for start in range(0, size, _PIECE_BYTES):
                file.write(ray.get(server.read.remote(name, start)))
    # `open_prepared` verifies the contents and names an incomplete file.
    partial.rename(folder)


def _exists(path: Path) -> bool:
    return path.exists()
