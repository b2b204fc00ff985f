"""Each check finds the class that breaks its promise, and names the place."""

from pathlib import Path

import pytest
from given_classes import EXAMPLES, line_of, permitted, run_of, written

from core.model_check.class_checks import ClassCheck

BATCH_NORM = """
class Mine(Base):
    def __init__(self, vocabulary_size, width=16):
        super().__init__(vocabulary_size, width)
        self.norm = nn.BatchNorm1d(width)

    def mix(self, x):
        return self.norm(x.transpose(1, 2)).transpose(1, 2)
"""
FAULTY = {
    "shapes": (
        "class Mine(Base):\n    def forward(self, input_ids):\n        return input_ids",
        "def forward(self, input_ids):",
        "returns",
    ),
    "gradients": (
        """
        class Broken(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 1

            @staticmethod
            def backward(ctx, gradient):
                raise ValueError("no way back")

        class Mine(Base):
            def mix(self, x):
                return Broken.apply(x)
        """,
        "no way back",
        "raised ValueError: no way back",
    ),
    "gradients of an operation of torch": (
        "class Mine(Base):\n    def mix(self, x):\n        y = torch.sigmoid(x)\n        return y.mul_(2)",
        "y = torch.sigmoid",
        "modified by an inplace operation",
    ),
    "gradients of all": (
        """
        class Mine(Base):
            def __init__(self, vocabulary_size):
                super().__init__(vocabulary_size)
                self.idle = nn.Linear(3, 3)
        """,
        "def forward",
        "no gradient reaches idle.weight, idle.bias",
    ),
    "micro-batches": (BATCH_NORM, "def forward", "norm takes its statistics over a micro-batch"),
    "micro-batches without a batch norm": (
        "class Mine(Base):\n    def mix(self, x):\n        return x - x.mean(0)",
        "def forward",
        "its rows are not apart",
    ),
    "instances": (
        """
        SHARED = torch.ones(16)

        class Mine(Base):
            def __init__(self, vocabulary_size):
                super().__init__(vocabulary_size)
                self.register_buffer("scale", SHARED)
        """,
        "def forward",
        "two instances share scale",
    ),
    "devices": (
        "class Mine(Base):\n    def mix(self, x):\n        return x + torch.arange(x.shape[1])[:, None]",
        "torch.arange",
        "make tensors with device=input_ids.device",
    ),
    "devices of attributes": (
        """
        class Mine(Base):
            def __init__(self, vocabulary_size):
                super().__init__(vocabulary_size)
                self.scale = torch.ones(16)
        """,
        "def forward",
        "self.scale is a plain tensor",
    ),
    "state_dict": (
        """
        class Mine(Base):
            def __init__(self, vocabulary_size):
                super().__init__(vocabulary_size)
                self.scale = [torch.rand(1).item()]

            def mix(self, x):
                return x * self.scale[0]
        """,
        "def forward",
        "a copy by state_dict gives other logits",
    ),
    "looks ahead": (
        "class Mine(Base):\n    def mix(self, x):\n        return x + x.mean(1, keepdim=True)",
        "def forward",
        "the objective is causal",
    ),
    "documents": (
        "class Mine(Base):\n    def mix(self, x):\n        return x.cumsum(1)",
        "def forward",
        "a document sees the one before it",
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_check_finds_its_fault_and_names_the_line(tmp_path: Path, name: str) -> None:
    text, at, words = FAULTY[name]
    file = written(tmp_path, text)
    check = ClassCheck(run_of(permitted("mine.py:Mine", tmp_path)), 61, confines_attention=name == "documents")
    found = {one.name: one.fault for one in check.results() if one.fault}
    fault = found[name.split(" of ")[0].split(" without ")[0]]
    assert words in fault
    assert "\n" not in fault
    assert fault.startswith(f"{file}:{line_of(file, at)}: ")


def test_a_class_that_keeps_the_contract_passes_all_checks(tmp_path: Path) -> None:
    written(tmp_path, "class Mine(Base):\n    def mix(self, x):\n        return F.dropout(x, 0.5, self.training)")
    check = ClassCheck(run_of(permitted("mine.py:Mine", tmp_path)), 61, confines_attention=True)
    found = list(check.results())
    assert len(found) == 10
    assert [one for one in found if one.fault] == []


def test_both_halves_must_agree_with_forward(tmp_path: Path) -> None:
    text = """
    class Mine(Base):
        def hidden_states(self, input_ids, document_ids):
            return self.tokens(input_ids)

        def logits(self, hidden):
            return 2 * self.head(hidden)
    """
    written(tmp_path, text)
    found = {one.name: one.fault for one in ClassCheck(run_of(permitted("mine.py:Mine", tmp_path)), 61).results()}
    assert "forward gives other logits" in str(found["both paths"])


def test_batch_statistics_are_permitted_where_the_file_says_so(tmp_path: Path) -> None:
    written(tmp_path, BATCH_NORM)
    run = run_of(permitted("mine.py:Mine", tmp_path)).with_overrides({"model.allow_batch_statistics": True})
    found = {one.name: one for one in ClassCheck(run, 61).results()}
    assert found["micro-batches"].fault is None
    assert "the file allows that" in found["micro-batches"].note


def test_a_class_that_depends_on_values_is_named_with_its_line(tmp_path: Path) -> None:
    file = written(tmp_path, "class Mine(Base):\n    def mix(self, x):\n        return x if x.sum() > 0 else -x")
    found = {one.name: one for one in ClassCheck(run_of(permitted("mine.py:Mine", tmp_path)), 61).results()}
    assert (
        f"measured with up to 16 rows, because values decide: {file}:{line_of(file, 'x.sum()')}" in found["memory"].note
    )


@pytest.mark.parametrize(
    ("path", "arguments", "is_masked"),
    [
        ("model_no_feed.py:NoFeed", {"dim": 32, "layers": 1, "heads": 2, "kv_heads": 1}, False),
        ("gated_mixer.py:GatedMixer", {"width": 16, "dropout": 0.1}, False),
        (
            "wrapped_bert.py:WrappedBert",
            {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
            True,
        ),
    ],
)
def test_the_examples_keep_the_contract(path: str, arguments: dict[str, int], is_masked: bool) -> None:
    check = ClassCheck(run_of(permitted(path, EXAMPLES), arguments, masked=is_masked), 61)
    assert [one for one in check.results() if one.fault] == []
