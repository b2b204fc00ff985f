"""The fault table of a README: one row a fault, written by the tests that cause the faults."""

import fcntl
from typing import NamedTuple

from command import ROOT

README = ROOT / "sweeps" / "execution" / "README.md"
_HEAD = "fault | running | ended by it with | tokens trained again | accounts, weights | continues by"


class Row(NamedTuple):
    """One row of the table."""

    fault: str
    running: str
    ended: str
    again: str
    accounts: str
    command: str


def read_rows() -> list[Row]:
    """The rows as the README has them."""
    _, rows, _ = _split()
    return rows


def write_row(row: Row, order: list[str]) -> None:
    """Put a row in its place, instead of the one that it replaces.

    Args:
        order: Names of all faults; rows of others are removed.
    """
    # Several processes may run the tests.
    with README.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before, rows, after = _split()
        known = {one.fault: one for one in (*rows, row)}
        lines = [" | ".join(known[name]) for name in order if name in known]
        README.write_text("\n".join([*before, *lines, *after]) + "\n", encoding="utf-8")


def _split() -> tuple[list[str], list[Row], list[str]]:
    lines = README.read_text(encoding="utf-8").splitlines()
    begin = lines.index(_HEAD) + 2
    end = next(number for number in range(begin, len(lines) + 1) if number == len(lines) or " | " not in lines[number])
    return lines[:begin], [Row(*line.split(" | ")) for line in lines[begin:end]], lines[end:]
