"""A trained model as a torch module with its tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from core.models.generation import Sampling
from core.settings.model_config import ModelConfig
from sweeps.trained_models.trained_model import TrainedModel


class LoadedModel(nn.Module):
    """A model of a sweep, a trial or a folder of transformers, in fp32 and evaluation mode, on the CPU.

    Shapes: B rows, T tokens a row, V vocabulary.
    """

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.language_model = trained.model
        self._trained = trained
        self.eval()

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, of the package tokenizers."""
        return self._trained.tokenizer

    @property
    def config(self) -> ModelConfig:
        """Its shape."""
        return self._trained.config

    @property
    def tokenizer_path(self) -> Path:
        """Its tokenizer.json."""
        return self._trained.tokenizer_path

    def forward(self, input_ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """(B, T, V) logits of the token at each position (masked LM) or after it (causal LM).

        Args:
            input_ids: (B, T) token ids, int64.
            document_ids: (B, T) document of each token within its row. None: a row is one document.
        """
        logits: Tensor = self.language_model(input_ids, document_ids)
        return logits

    def encode(self, text: str) -> Tensor:
        """(1, T) token ids of a text between its begin and end tokens; a causal LM continues it, so it has no end."""
        vocabulary = self._trained.vocabulary
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return torch.tensor([[vocabulary.bos_id, *ids, *([] if self.config.is_causal else [vocabulary.eos_id])]])

    def fill_mask(self, text: str, num_candidates: int = 5) -> list[list[tuple[str, float]]]:
        """The likeliest fillings of each mask of a text, with their probabilities.

        Raises:
            InputFault: The model is no masked LM, or the text has no mask or is too long.
        """
        return self._trained.fill(text, num_candidates=num_candidates)

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> str:
        """The continuation of a text by a causal LM.

        Args:
            temperature: 0: greedy.
            top_k, top_p: Sample only from the likeliest tokens, by number or by their probability together.

        Raises:
            InputFault: The model is a masked LM.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        return "".join(self._trained.continue_text(prompt, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed))
