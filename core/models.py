"""From the settings of a model to the model."""

from core.decoder import LlamaDecoder
from core.encoder import ModernEncoder, RobertaEncoder
from core.language_model import LanguageModel
from core.run_config import ModelConfig


def build_model(config: ModelConfig, vocabulary_size: int, *, pad_id: int = 1) -> LanguageModel:
    """A model with fresh weights, drawn from torch's global random state: seed it first.

    It is built on the current device (`with torch.device(...)`), in fp32, in training mode.

    Args:
        pad_id: Token that stands for nothing. Encoders never attend to it, and RoBERTa's positions start after it.
            Decoders need none: padding comes after all that is real, and nothing before it can see it.
    """
    assert config.equal_in is None, "core.equal_size.equalized comes first"
    if config.is_causal:
        return LlamaDecoder(config, vocabulary_size)
    if config.form == "roberta":
        return RobertaEncoder(config, vocabulary_size, pad_id=pad_id)
    return ModernEncoder(config, vocabulary_size, pad_id=pad_id)
