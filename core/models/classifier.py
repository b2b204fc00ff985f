"""Encoders that tell classes of texts apart: fine-tuning, as BERT and RoBERTa are used downstream.

A classifier keeps the promise of every model here: hidden states for all tokens, logits for the positions that are
asked for. Its vocabulary is the classes, and it is asked at the first token of each row. So it is trained by the same
step, in the same loop, with the same memory limit, checkpoints and evaluation as any other model.

Shape suffixes: B rows, T tokens a row, D width, P selected positions, C classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.layers.transformer_parts import Linear
from core.models.encoder import ModernEncoder, RobertaEncoder
from core.settings.model_config import ModelConfig


class RobertaClassifier(RobertaEncoder):
    """Number for number Hugging Face's `RobertaForSequenceClassification`."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, num_classes: int, *, pad_id: int) -> None:
        super().__init__(_tied(config), vocabulary_size, pad_id=pad_id)
        # What follows the dense map of masked LM is another thing here, so that map is learnt anew as well.
        self.head_norm = nn.Identity()  # type: ignore[assignment]
        self.head_dropout = nn.Dropout(config.dropout)
        self.head_weight = Linear(config.width, num_classes, bias=False).weight
        self.head_bias = nn.Parameter(torch.zeros(num_classes))

    def head_features(self, hidden_PD: Tensor) -> Tensor:
        features_PD: Tensor = self.head_dropout(torch.tanh(self.head_dense(self.head_dropout(hidden_PD))))
        return features_PD


class ModernClassifier(ModernEncoder):
    """Number for number Hugging Face's `ModernBertForSequenceClassification` that looks at the first token.

    The head of masked LM stays before the classes, as ModernBERT has it.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, num_classes: int, *, pad_id: int) -> None:
        super().__init__(_tied(config), vocabulary_size, pad_id=pad_id)
        self.head_dropout = nn.Dropout(config.dropout)
        self.head_weight = Linear(config.width, num_classes, bias=False).weight
        self.head_bias = nn.Parameter(torch.zeros(num_classes))

    def head_features(self, hidden_PD: Tensor) -> Tensor:
        features_PD: Tensor = self.head_dropout(super().head_features(hidden_PD))
        return features_PD


Classifier = RobertaClassifier | ModernClassifier

_LEARNT_ANEW = {
    RobertaClassifier: ("head_dense.weight", "head_dense.bias", "head_weight", "head_bias"),
    ModernClassifier: ("head_weight", "head_bias"),
}


def build_classifier(config: ModelConfig, vocabulary_size: int, num_classes: int, *, pad_id: int) -> Classifier:
    """A classifier with fresh weights, drawn from torch's global random state."""
    form = RobertaClassifier if config.form == "roberta" else ModernClassifier
    return form(config, vocabulary_size, num_classes, pad_id=pad_id)


@torch.no_grad()
def take_encoder(classifier: Classifier, theirs: Mapping[str, Tensor]) -> None:
    """Put the weights of a pretrained encoder of the same shape into a classifier; its head stays as it is.

    Args:
        theirs: Tensors of the encoder by name, as `checkpoint.model_tensors` gives them.

    Raises:
        ValueError: The encoder is of another form or shape; the first differences are named.
    """
    anew = _LEARNT_ANEW[type(classifier)]
    faults = []
    for name, ours in classifier.named_parameters():
        if name in anew:
            continue
        if name not in theirs or theirs[name].shape != ours.shape:
            there = tuple(theirs[name].shape) if name in theirs else "missing"
            faults.append(f"{name} is {tuple(ours.shape)} here and {there} there")
        else:
            ours.copy_(theirs[name])
    if faults:
        raise ValueError(f"the encoder is of another shape: {'; '.join(faults[:3])}")


def _tied(config: ModelConfig) -> ModelConfig:
    # A vocabulary matrix of its own would be built and thrown away.
    return config.model_copy(update={"tied_embeddings": True})
