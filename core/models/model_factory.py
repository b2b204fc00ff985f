"""Build a model from its settings."""

from core.models.classifier import build_classifier
from core.models.decoder import LlamaDecoder
from core.models.encoder import ModernEncoder, RobertaEncoder
from core.models.language_model import LanguageModel
from core.settings.model_config import ModelConfig


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
    assert config.equal_in is None, "call core.models.size_matching.equalized first"
    if config.is_causal:
        return LlamaDecoder(config, vocabulary_size)
    if num_classes is not None:
        return build_classifier(config, vocabulary_size, num_classes, pad_id=pad_id)
    if config.form == "roberta":
        return RobertaEncoder(config, vocabulary_size, pad_id=pad_id)
    return ModernEncoder(config, vocabulary_size, pad_id=pad_id)
