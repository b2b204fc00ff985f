"""Compiled bodies: one graph whatever the family, and compiled whatever came before in the process."""

from typing import Any

import pytest
import torch

from core.doctor.memory_claims import FAMILIES, a_run
from core.layers import attention_kernel, rms_norm
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.step import compiled_body as of_process
from core.step.compiled_body import compiled_body

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_body_on_a_gpu_is_one_graph_without_breaks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (attention_kernel, rms_norm):
        monkeypatch.setattr(module, "has_cache_blocks", lambda _: False)
    run, vocabulary_size = a_run(family, CPU)
    model = build_model(run.model, vocabulary_size)
    inputs_BT = torch.randint(5, vocabulary_size, (2, run.model.sequence_length))
    torch.compiler.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch._dynamo.explain(model.hidden_states)(inputs_BT)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_compiled_forms_are_dropped_before_another_shape_and_used_again_for_an_equal_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    def compile_nothing(function: Any, **_: Any) -> Any:
        calls.append("compile")
        return function

    monkeypatch.setattr(of_process, "_LAST", [])
    monkeypatch.setattr(torch.compiler, "reset", lambda: calls.append("reset"))
    monkeypatch.setattr(torch, "compile", compile_nothing)
    small, wide = (
        build_model(ModelConfig(layers=1, width=width, heads=2, sequence_length=16), 100) for width in (32, 64)
    )
    for model, rows in ((small, 8), (small, 8), (wide, 8), (wide, 4), (small, 8)):
        compiled_body(model, rows=rows)
    assert calls == ["reset", "compile", "compile", *["reset", "compile"] * 3]
