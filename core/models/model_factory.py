"""Build a model from its settings, with random weights or without values."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from core.models.classifier import build_classifier
from core.models.decoder import LlamaDecoder
from core.models.encoder import ModernEncoder, RobertaEncoder
from core.models.given_class import build_given
from core.models.language_model import LanguageModel
from core.models.width_transfer import scale_from_base
from core.settings.model_config import ModelConfig
from core.user_code.code_places import UserCodeError


def build_model(
    config: ModelConfig, vocabulary_size: int, *, pad_id: int = 1, num_classes: int | None = None
) -> LanguageModel:
    """A model with random weights, drawn from torch's global random state; seed it first.

    It is built on the current device (`with torch.device(...)`), in fp32, in training mode.

    Args:
        pad_id: Id of the padding token. Encoders never attend to it, and RoBERTa's positions start after it. Decoders
            ignore it: padding comes last, and earlier tokens cannot see it.
        num_classes: Number of classes of a classifier (encoders only). None: a language model.
    """
    model = _standard_model(config, vocabulary_size, pad_id=pad_id, num_classes=num_classes)
    if config.parametrization == "mup":
        scale_from_base(model, config)
    return model


def _standard_model(
    config: ModelConfig, vocabulary_size: int, *, pad_id: int, num_classes: int | None
) -> LanguageModel:
    assert config.equal_in is None, "call core.models.size_matching.equalized first"
    if config.class_ is not None:
        return build_given(config, vocabulary_size, pad_id=pad_id)
    if config.is_causal:
        return LlamaDecoder(config, vocabulary_size)
    if num_classes is not None:
        return build_classifier(config, vocabulary_size, num_classes, pad_id=pad_id)
    if config.form == "roberta":
        return RobertaEncoder(config, vocabulary_size, pad_id=pad_id)
    return ModernEncoder(config, vocabulary_size, pad_id=pad_id)


def model_of_shapes(config: ModelConfig, vocabulary_size: int) -> LanguageModel:
    """A model that has shapes and no values. A user's class that cannot be built so has values."""
    try:
        with without_values():
            return build_model(config, vocabulary_size)
    except UserCodeError:
        with torch.random.fork_rng(devices=[]):
            return build_model(config, vocabulary_size)


@contextmanager
def without_values() -> Iterator[None]:
    """Context in which modules have shapes alone: they are on the meta device, and no initial values are drawn."""
    # On the meta device torch draws by a decomposition that imports its compiler, which takes a second.
    with torch.device("meta"), _NothingDrawn():
        yield


_DRAWS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(function for name, function in vars(nn.init).items() if name.endswith("_") and callable(function)),
        Tensor.normal_,
    }
)


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS:
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            return tensor
        return func(*args, **kwargs)
