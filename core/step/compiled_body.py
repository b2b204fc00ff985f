"""The body of a model as compiled code, in a process that trains one model after another."""

import torch

from core.models.language_model import LanguageModel
from core.step.objectives import HiddenStates

_LAST: list[str] = []
"""Form of the last compiled body of this process."""


def compiled_body(model: LanguageModel, *, rows: int) -> HiddenStates:
    """`hidden_states` of the model as compiled code, for micro-batches of this size only.

    torch keeps a few compiled forms of one function and silently runs the others uncompiled, so the ninth shape of a
    warm process would be slow. Forms of another shape are therefore dropped first; equal ones are used again.
    """
    shapes = ", ".join(f"{name} {tuple(parameter.shape)}" for name, parameter in model.named_parameters())
    form = f"{type(model).__name__}, {rows} rows, {shapes}"
    if [form] != _LAST:
        torch.compiler.reset()
        _LAST[:] = [form]
    return torch.compile(model.hidden_states, dynamic=False)
