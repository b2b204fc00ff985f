"""File systems that fill up or become read-only while a sweep trains: small mounts of their own."""

import pytest
from struck_sweep import StruckSweep


def disk_full(folder: str):  # type: ignore[no-untyped-def]
    def strike(sweep: StruckSweep) -> None:
        pytest.skip("later")

    return strike


def read_only(sweep: StruckSweep) -> None:
    pytest.skip("later")
