"""One claim about a machine, and what became of it."""

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["pass", "fail", "not applicable", "not run"]
"""not applicable: the claim does not concern this machine. not run: the time was over, or it was not asked for."""


@dataclass(frozen=True)
class Check:
    """Verdict on one claim. Plain values, so it pickles and is JSON."""

    subject: str
    verdict: Verdict
    words: str
    """What was found, with units."""
    figures: dict[str, float] = field(default_factory=dict)
    """Measured figures by name; each name ends with its unit."""


def verdict_of(is_kept: bool) -> Verdict:
    """pass or fail."""
    return "pass" if is_kept else "fail"
