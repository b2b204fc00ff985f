"""The named stretches of a training step. Importable without torch."""

from typing import Literal

Stretch = Literal["data", "forward", "backward", "exchange", "optimizer"]

STRETCHES: tuple[Stretch, ...] = ("data", "forward", "backward", "exchange", "optimizer")
