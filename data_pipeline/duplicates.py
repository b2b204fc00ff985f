"""Which texts of a corpus have been seen before, without holding the texts."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

# Hashes looked at together; bounds memory to some hundred MB however large the corpus is.
_HASHES_AT_ONCE = 4_000_000


def find_duplicates(paths: Iterable[Path]) -> dict[str, list[int]]:
    """Places of all texts but the first of each, by parcel.

    Args:
        paths: Hash files of parcels (two uint64 a text), named as the parcel, in the order of the corpus.
    """
    ordered = list(paths)
    num_hashes = sum(path.stat().st_size for path in ordered) // 16
    num_passes = -(-num_hashes // _HASHES_AT_ONCE) or 1
    dropped: dict[str, list[int]] = {}
    for number in range(num_passes):
        for parcel, place in _repeated(ordered, number, num_passes):
            dropped.setdefault(ordered[parcel].stem, []).append(place)
    return dropped


def _repeated(paths: list[Path], number: int, num_passes: int) -> list[tuple[int, int]]:
    """(parcel, place) of repeated texts among those whose hash falls into this pass."""
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
    return list(zip(parcel_of[again].tolist(), place_of[again].tolist(), strict=True))
