"""Encoders with a classification head, for fine-tuning like BERT and RoBERTa.

A classifier has the interface of `LanguageModel`: hidden states for all tokens, logits for selected positions. Its
vocabulary is the classes, and the selected position is the first token of each row. It therefore shares step, loop,
memory limit, checkpoints and evaluation with all other models.

Shape suffixes: B rows, T tokens a row, D width, P selected positions, C classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.layers.transformer_parts import Linear
from core.models.encoder import ModernEncoder, RobertaEncoder
from core.settings.model_config import ModelConfig


class RobertaClassifier(RobertaEncoder):
    """RoBERTa classifier, numerically equal to Hugging Face's `RobertaForSequenceClassification`."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, num_classes: int, *, pad_id: int) -> None:
        super().__init__(_tied(config), vocabulary_size, pad_id=pad_id)
        # The head of masked LM differs after its dense layer, so that layer is trained from scratch too.
        self.head_norm = nn.Identity()  # type: ignore[assignment]
        self.head_dropout = nn.Dropout(config.dropout)
        self.head_weight = Linear(config.width, num_classes, bias=False).weight
        self.head_bias = nn.Parameter(torch.zeros(num_classes))

    def head_features(self, hidden_PD: Tensor) -> Tensor:
        features_PD: Tensor = self.head_dropout(torch.tanh(self.head_dense(self.head_dropout(hidden_PD))))
        return features_PD


class ModernClassifier(ModernEncoder):
    """ModernBERT classifier, numerically equal to Hugging Face's `ModernBertForSequenceClassification` (CLS pooling).

    As in ModernBERT, the head of masked LM remains before the classes.
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
    """A classifier with random weights, drawn from torch's global random state.

    Args:
        pad_id: Id of the padding token.
    """
    form = RobertaClassifier if config.form == "roberta" else ModernClassifier
    return form(config, vocabulary_size, num_classes, pad_id=pad_id)


@torch.no_grad()
def take_encoder(classifier: Classifier, theirs: Mapping[str, Tensor]) -> None:
    """Copy the weights of a pretrained encoder of the same shape into a classifier, except into its head.

    Args:
        theirs: Tensors of the encoder by name, from `checkpoint.model_tensors`.

    Raises:
        ValueError: The encoder has another form or shape; the message names the first differences.
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
        raise ValueError(
            f"the encoder is of another shape: {'; '.join(faults[:3])}; give weights of an encoder with these settings"
        )


def _tied(config: ModelConfig) -> ModelConfig:
    # An untied vocabulary matrix would be built and discarded.
    return config.model_copy(update={"tied_embeddings": True})
