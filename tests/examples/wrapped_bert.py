"""Any masked LM of Hugging Face transformers, from its configuration, with new weights."""

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM


class WrappedBert(nn.Module):
    def __init__(self, vocabulary_size: int, pad_id: int, kind: str = "bert", **settings: int) -> None:
        super().__init__()
        config = AutoConfig.for_model(kind, vocab_size=vocabulary_size, pad_token_id=pad_id, **settings)
        self.bert, self.pad_id = AutoModelForMaskedLM.from_config(config), pad_id

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.bert(input_ids, attention_mask=(input_ids != self.pad_id).long()).logits

    def save_pretrained(self, folder: str) -> None:
        self.bert.save_pretrained(folder)
