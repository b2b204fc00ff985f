"""Classes of users for tests: written to a file, found, permitted."""

from pathlib import Path
from textwrap import dedent
from typing import Any

from core.settings.run_config import RunConfig
from core.user_code.class_source import ClassCode, find_code
from core.user_code.permitted_code import permit

EXAMPLES = Path(__file__).parents[1] / "examples"
BASE = """
import torch
from torch import nn
from torch.nn import functional as F


class Base(nn.Module):
    def __init__(self, vocabulary_size, width=16):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.head = nn.Linear(width, vocabulary_size)

    def mix(self, x):
        return x

    def forward(self, input_ids, document_ids=None):
        return self.head(self.mix(self.tokens(input_ids)))
"""
"""A class that keeps the contract, for others to break it."""


def written(folder: Path, text: str, *, name: str = "mine.py") -> Path:
    """A file with the base class and the given text."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(BASE + "\n" + dedent(text))
    return file


def line_of(file: Path, words: str) -> int:
    """Number of the first line with these words."""
    return next(number for number, line in enumerate(file.read_text().splitlines(), start=1) if words in line)


def permitted(class_path: str, folder: Path) -> ClassCode:
    code = find_code(class_path, [folder])
    permit(code)
    return code


def run_of(
    code: ClassCode, arguments: dict[str, Any] | None = None, *, masked: bool = False, **training: Any
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {
                "class": code.class_path,
                "class_digest": code.digest,
                "arguments": arguments or {},
                "family": "encoder" if masked else "decoder",
                "sequence_length": 16,
            },
            "objective": "masked_lm" if masked else "causal_lm",
            "training": {
                "batch_size": 16,
                "micro_batch_size": 8,
                "tokens": 20 * 256,
                "learning_rate": 3e-3,
                "precision": "fp32",
                **training,
            },
        }
    )
