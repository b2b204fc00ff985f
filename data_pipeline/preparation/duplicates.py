"""Which texts of a corpus have been seen before, without holding the texts."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Hashes looked at together; bounds memory to some hundred MB however large the corpus is.
_HASHES_AT_ONCE = 4_000_000


def find_duplicates(paths: Iterable[Path]) -> dict[str, NDArray[np.int32]]:
    """Places of all texts but the first of each, by parcel.

    Args:
        paths: Hash files of parcels (two uint64 a text), named as the parcel, in the order of the corpus.
    """
    ordered = list(paths)
    found: dict[str, list[NDArray[np.int32]]] = {}
    for parcels, places in _repeated_by_pass(ordered):
        by_parcel = np.argsort(parcels, kind="stable")
        numbers, starts = np.unique(parcels[by_parcel], return_index=True)
        for number, group in zip(numbers.tolist(), np.split(places[by_parcel], starts[1:]), strict=True):
            found.setdefault(ordered[number].stem, []).append(group.astype(np.int32))
    return {parcel: np.concatenate(groups) for parcel, groups in found.items()}


def count_duplicates(paths: Iterable[Path]) -> int:
    """How many texts `find_duplicates` would find, without a list of them."""
    return sum(len(places) for _, places in _repeated_by_pass(list(paths)))


def _repeated_by_pass(paths: list[Path]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    num_hashes = sum(path.stat().st_size for path in paths) // 16
    num_passes = -(-num_hashes // _HASHES_AT_ONCE)
    for number in range(num_passes):
        parcels, places = _repeated(paths, number, num_passes)
        if len(places):
            yield parcels, places


def _repeated(paths: list[Path], number: int, num_passes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(parcels, places) of repeated texts among those whose hash falls into this pass."""
    keys, parcels, places = [], [], []
    for parcel, path in enumerate(paths):
        hashes = np.fromfile(path, "<u8").reshape(-1, 2)
        chosen = np.flatnonzero(hashes[:, 1] % np.uint64(num_passes) == number)
        keys.append(hashes[chosen])
        parcels.append(np.full(len(chosen), parcel))
        places.append(chosen)
    key, parcel_of, place_of = np.concatenate(keys), np.concatenate(parcels), np.concatenate(places)
    # Stable: equal hashes stay in the order of the corpus, so that the first of them is the first that was read.
    order = np.lexsort((np.arange(len(key)), key[:, 1], key[:, 0]))
    in_order = key[order]
    is_repeated = np.zeros(len(key), np.bool_)
    is_repeated[1:] = (in_order[1:] == in_order[:-1]).all(axis=1)
    again = np.sort(order[is_repeated])
    return parcel_of[again], place_of[again]
