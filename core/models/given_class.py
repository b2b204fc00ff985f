"""A user's class as a model of ours: the contract of README.md, kept by an adapter.

Fast path: the class has `hidden_states(input_ids, document_ids)` and `logits(hidden)`, so logits exist at predicted
positions alone. Simple path: it has `forward(input_ids, document_ids=None)`, which gives logits at all positions.

Shape suffixes: B rows, T tokens a row, D width, P selected positions, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from core.memory.out_of_memory import classify
from core.models.language_model import LanguageModel
from core.settings.model_config import ModelConfig
from core.user_code.class_source import ClassCode
from core.user_code.code_places import UserCodeError, told_with_place
from core.user_code.permitted_code import files_of, permitted_class

_HALVES = ("hidden_states", "logits")


class GivenModel(LanguageModel):
    """A module of the user's class. Its errors come as UserCodeError, with their place in the user's file."""

    def __init__(self, module: nn.Module, code: ClassCode, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.is_causal = config.is_causal
        self.num_positions = config.sequence_length
        self.layers = nn.ModuleList()
        self.head_weight = None
        self.head_bias = None
        self.module = module
        self.code = code
        self.vocabulary_size = vocabulary_size
        cls = type(module)
        self.has_two_halves = all(callable(getattr(cls, name, None)) for name in _HALVES)
        """True: the fast path."""
        self._body: Callable[..., Any] = getattr(module, "hidden_states") if self.has_two_halves else module  # noqa: B009
        self._head: Callable[..., Any] | None = getattr(module, "logits", None)
        self._body_name = f"{code.class_name}.{'hidden_states' if self.has_two_halves else 'forward'}"
        self.takes_document_ids = _takes_second(getattr(cls, self._body_name.rpartition(".")[2]))
        """False: rows must be single documents."""
        self.files = files_of(code)

    def hidden_states(self, inputs_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        """(B, T, D) hidden states; on the simple path (B, T, V) logits, of which `logits` changes nothing."""
        if document_ids_BT is not None and not self.takes_document_ids:
            raise UserCodeError(
                f"{self.place_of_body()}: {self._body_name} takes no document_ids, and rows hold several documents "
                "that must not see each other; add the argument, or set packing.attention: across_documents"
            )
        with self.errors_placed(self._body_name):
            out = self._body(inputs_BT, document_ids_BT) if self.takes_document_ids else self._body(inputs_BT)
        wanted = (*inputs_BT.shape, "D" if self.has_two_halves else self.vocabulary_size)
        if not isinstance(out, Tensor) or out.ndim != 3 or out.shape[:2] != inputs_BT.shape:
            raise self._wrong_shape(self._body_name, wanted, out)
        if not self.has_two_halves and out.shape[2] != self.vocabulary_size:
            raise self._wrong_shape(self._body_name, wanted, out)
        return out

    def head_features(self, hidden_PD: Tensor) -> Tensor:
        """Not split further: the class owns its head."""
        return hidden_PD

    def logits(self, hidden_PD: Tensor) -> Tensor:
        """(P, V) logits."""
        if not self.has_two_halves or self._head is None:
            return hidden_PD
        name = f"{self.code.class_name}.logits"
        with self.errors_placed(name):
            out = self._head(hidden_PD)
        if not isinstance(out, Tensor) or out.shape != (*hidden_PD.shape[:-1], self.vocabulary_size):
            raise self._wrong_shape(name, (*hidden_PD.shape[:-1], self.vocabulary_size), out)
        return out

    def place_of_body(self) -> str:
        """`file:line` at which `hidden_states` or `forward` begins."""
        return self._place(self._body_name.rpartition(".")[2])

    @contextmanager
    def errors_placed(self, what: str) -> Iterator[None]:
        """Errors in the block become UserCodeErrors with their place; those of memory pass."""
        with told_with_place(what, self.files, passes=lambda error: classify(error) is not None):
            yield

    def _place(self, method: str) -> str:
        return place_of_function(getattr(type(self.module), method), self.files)

    def _wrong_shape(self, what: str, wanted: tuple[int | str, ...], out: object) -> UserCodeError:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        asked = f"({', '.join(map(str, wanted))})"
        return UserCodeError(
            f"{self._place(what.rpartition('.')[2])}: {what} returns {shape}, and a tensor of {asked} is needed"
        )


def build_given(config: ModelConfig, vocabulary_size: int, *, pad_id: int) -> GivenModel:
    """The model of `model.class`, with random weights.

    Its constructor receives `vocabulary_size` and the arguments of the settings; also `sequence_length`, `is_causal`
    and `pad_id`, if it names them.

    Raises:
        CodeNotPermittedError: This process may not run its code.
        UserCodeError: It cannot be imported or built.
    """
    assert config.class_ is not None
    code, cls = permitted_class(config.class_, config.class_digest)
    place = place_of_function(cls.__init__, files_of(code))
    if not issubclass(cls, nn.Module):
        raise UserCodeError(f"{place}: {code.class_name} is no torch.nn.Module; derive it from torch.nn.Module")
    arguments = {"vocabulary_size": vocabulary_size, **config.arguments}
    beside = {"sequence_length": config.sequence_length, "is_causal": config.is_causal, "pad_id": pad_id}
    _check_arguments(cls, arguments, beside, place, code)
    named = inspect.signature(cls).parameters
    arguments |= {name: value for name, value in beside.items() if name in named and name not in arguments}
    with told_with_place(f"{code.class_name}.__init__", files_of(code), passes=lambda one: classify(one) is not None):
        module = cls(**arguments)
    body = getattr(cls, "hidden_states", None)
    if callable(body) and not callable(getattr(cls, "logits", None)):
        at = place_of_function(body, files_of(code))
        raise UserCodeError(
            f"{at}: {code.class_name} has hidden_states and no logits; add logits(hidden), or give forward alone"
        )
    return GivenModel(module, code, config, vocabulary_size)


def place_of_function(function: object, files: list[str]) -> str:
    """`file:line` of a function of the user; the first file where it is none of these."""
    written = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
    if written is not None and written.co_filename in files:
        return f"{written.co_filename}:{written.co_firstlineno}"
    return files[0]


def _check_arguments(
    cls: type[Any], arguments: dict[str, Any], beside: dict[str, Any], place: str, code: ClassCode
) -> None:
    """Check the arguments against the constructor; the message lists all faults."""
    parameters = inspect.signature(cls).parameters
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    names = [name for name, one in parameters.items() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    given = {*arguments, *beside}
    faults = [f"takes no argument {name}" for name in arguments if name not in names and not takes_any]
    faults += [
        f"needs the argument {name} (write model.arguments.{name})"
        for name, one in parameters.items()
        if one.default is inspect.Parameter.empty
        and one.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        and name not in given
    ]
    if faults:
        raise UserCodeError(
            f"{place}: {code.class_name} {' and '.join(faults)}; its arguments are {', '.join(names) or 'none'}"
        )


def _takes_second(function: Callable[..., Any]) -> bool:
    """Whether a method takes document_ids, by position after input_ids."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters):
        return True
    return sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters) >= 2
