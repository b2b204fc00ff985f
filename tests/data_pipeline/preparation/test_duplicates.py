from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.preparation import duplicates
from data_pipeline.preparation.duplicates import count_duplicates, find_duplicates
from data_pipeline.preparation.survey import hash_texts


def hash_files(folder: Path, parcels: Sequence[Sequence[str]]) -> list[Path]:
    """The texts of each parcel as a survey lays them down."""
    paths = [folder / f"{number:06d}.hashes" for number in range(len(parcels))]
    for path, texts in zip(paths, parcels, strict=True):
        path.write_bytes(hash_texts(list(texts))[0].tobytes())
    return paths


@given(
    parcels=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=5), hashes_at_once=st.integers(1, 8)
)
def test_all_but_the_first_of_equal_texts_are_found_however_many_fit_in_memory(
    tmp_path_factory: pytest.TempPathFactory, parcels: list[list[str]], hashes_at_once: int
) -> None:
    paths = hash_files(tmp_path_factory.mktemp("hashes"), parcels)
    seen: set[str] = set()
    expected: dict[str, list[int]] = {}
    for path, texts in zip(paths, parcels, strict=True):
        for place, text in enumerate(texts):
            if text in seen:
                expected.setdefault(path.stem, []).append(place)
            seen.add(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_HASHES_AT_ONCE", hashes_at_once)
        found = find_duplicates(paths)
        assert {parcel: sorted(places.tolist()) for parcel, places in found.items()} == expected
        assert count_duplicates(paths) == sum(map(len, expected.values()))
