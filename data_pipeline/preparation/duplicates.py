"""Find repeated texts of a corpus by their hashes."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Hashes per pass; bounds memory to a few hundred MB for any corpus size.
_HASHES_AT_ONCE = 4_000_000


def find_duplicates(paths: Iterable[Path]) -> dict[str, NDArray[np.int32]]:
    """Indices of all repeated texts, by parcel; the first occurrence of a text is not listed.

    Args:
        paths: Hash files of parcels (two uint64 a text), named after the parcel, in corpus order.
    """
    ordered = list(paths)
    found: dict[str, list[NDArray[np.int32]]] = {}
    for parcels, indices in _repeated_by_pass(ordered):
        by_parcel = np.argsort(parcels, kind="stable")
        numbers, starts = np.unique(parcels[by_parcel], return_index=True)
        for number, group in zip(numbers.tolist(), np.split(indices[by_parcel], starts[1:]), strict=True):
            found.setdefault(ordered[number].stem, []).append(group.astype(np.int32))
    return {parcel: np.concatenate(groups) for parcel, groups in found.items()}


def count_duplicates(paths: Iterable[Path]) -> int:
    """Number of texts that `find_duplicates` would list."""
    return sum(len(indices) for _, indices in _repeated_by_pass(list(paths)))


def _repeated_by_pass(paths: list[Path]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    num_hashes = sum(path.stat().st_size for path in paths) // 16
    num_passes = -(-num_hashes // _HASHES_AT_ONCE)
    for number in range(num_passes):
        parcels, indices = _repeated(paths, number, num_passes)
        if len(indices):
            yield parcels, indices


def _repeated(paths: list[Path], number: int, num_passes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(parcels, indices) of repeated texts among those whose hash falls into this pass."""
    keys, parcels, indices = [], [], []
    for parcel, path in enumerate(paths):
        hashes = np.fromfile(path, "<u8").reshape(-1, 2)
        chosen = np.flatnonzero(hashes[:, 1] % np.uint64(num_passes) == number)
        keys.append(hashes[chosen])
        parcels.append(np.full(len(chosen), parcel))
        indices.append(chosen)
    key, parcel_of, index_of = np.concatenate(keys), np.concatenate(parcels), np.concatenate(indices)
    # Stable: equal hashes stay in corpus order, so the first of them is the first text that was read.
    order = np.lexsort((np.arange(len(key)), key[:, 1], key[:, 0]))
    in_order = key[order]
    is_repeated = np.zeros(len(key), np.bool_)
    is_repeated[1:] = (in_order[1:] == in_order[:-1]).all(axis=1)
    again = np.sort(order[is_repeated])
    return parcel_of[again], index_of[again]
