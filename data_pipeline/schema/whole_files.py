"""Files that are there whole or not at all; hashes of files."""

import hashlib
import os
from pathlib import Path


def hash_file(path: Path) -> str:
    """Hash of a file's bytes, hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also when two write it at once."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file whole."""
    # Several times a trial, where paths as objects would take longer than the writing.
    partial = f"{path.parent}/.{path.name}.{os.getpid()}"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)
