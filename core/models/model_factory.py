"""From the settings of a model to the model."""

from core.models.classifier import build_classifier
from core.models.decoder import LlamaDecoder
from core.models.encoder import ModernEncoder, RobertaEncoder
from core.models.language_model import LanguageModel
from core.settings.model_config import ModelConfig


def build_model(
    config: ModelConfig, vocabulary_size: int, *, pad_id: int = 1, num_classes: int | None = None
) -> LanguageModel:
    """A model with fresh weights, drawn from torch's global random state: seed it first.

    It is built on the current device (`with torch.device(...)`), in fp32, in training mode.

    Args:
        pad_id: Token that stands for nothing. Encoders never attend to it, and RoBERTa's positions start after it.
            Decoders need none: padding comes after all that is real, and nothing before it can see it.
        num_classes: Of an encoder that tells classes of texts apart; None: tokens are predicted.
    """
    assert config.equal_in is None, "core.models.size_matching.equalized comes first"
    if config.is_causal:
        return LlamaDecoder(config, vocabulary_size)
    if num_classes is not None:
        return build_classifier(config, vocabulary_size, num_classes, pad_id=pad_id)
    if config.form == "roberta":
        return RobertaEncoder(config, vocabulary_size, pad_id=pad_id)
    return ModernEncoder(config, vocabulary_size, pad_id=pad_id)
