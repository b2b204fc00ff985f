"""Atomic file writes (a file exists complete or not at all), and hashes of files."""

import hashlib
import os
from pathlib import Path

from data_pipeline.files.own_files import fresh


def hash_file(path: Path) -> str:
    """BLAKE2b hash (128 bits) of a file's bytes, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically and durably (fsync), also when several processes write it at once."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "wb", opener=fresh) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file atomically, without fsync."""
    # Runs several times per trial; pathlib objects would cost more time than the write.
    partial = f"{path.parent}/.{path.name}.{os.getpid()}"
    with open(partial, "w", encoding="utf-8", opener=fresh) as file:
        file.write(text)
    os.replace(partial, path)
