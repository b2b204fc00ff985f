"""The winner as an MLflow model: takes a table of texts, returns restored or continued texts.

`mlflow_model.py` copies this file into the model. It imports nothing from pretune, so serving needs no pretune.
"""

from typing import Any

import pandas as pd
import torch
from mlflow.pyfunc.model import PythonModel

FOLDER = "best"
"""Name of the artifact with the model's folder for Hugging Face transformers."""
TEXT, RESTORED, CONTINUED = "text", "restored", "continuation"
"""Columns: the input; the output of a masked LM; the output of a causal LM."""
DEFAULTS = {"max_new_tokens": 64, "temperature": 0.0, "seed": 0}
"""Parameters of continuations. Temperature 0: greedy."""


class ServedModel(PythonModel):
    """Fills the masks of texts (masked LM) or continues texts (causal LM)."""

    def load_context(self, context: Any) -> None:
        """Load the transformers folder among the model's artifacts."""
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

        folder = context.artifacts[FOLDER]
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._is_causal = self._tokenizer.mask_token is None or not self._tokenizer.cls_token
        auto = AutoModelForCausalLM if self._is_causal else AutoModelForMaskedLM
        self._model = auto.from_pretrained(folder, local_files_only=True).eval()

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One output row per row of `model_input`, in the same order.

        Raises:
            ValueError: A text is longer than the model accepts; the message names the row.
        """
        texts = [str(text) for text in model_input[TEXT]]
        if self._is_causal:
            known = {**DEFAULTS, **(params or {})}
            return pd.DataFrame({CONTINUED: [self._continued(text, known) for text in texts]}, model_input.index)
        return pd.DataFrame(
            {RESTORED: [self._restored(text, row) for row, text in enumerate(texts)]}, model_input.index
        )

    @torch.no_grad()
    def _restored(self, text: str, row: int) -> str:
        """The text with each mask replaced by the most likely token."""
        tokens_1T = self._tokenizer(text, return_tensors="pt")["input_ids"]
        longest = self._tokenizer.model_max_length
        if tokens_1T.shape[1] > longest:
            raise ValueError(f"the text of row {row} has {tokens_1T.shape[1]} tokens, and the model takes {longest}")
        guessed_1T = self._model(input_ids=tokens_1T).logits.argmax(-1)
        mask = self._tokenizer.mask_token
        pieces = text.split(mask)
        guesses = guessed_1T[tokens_1T == self._tokenizer.mask_token_id].tolist()
        restored = pieces[0]
        # Keep the original text between the masks: decoding may not reproduce it exactly.
        for guess, piece in zip(guesses, pieces[1:], strict=True):
            restored += str(self._tokenizer.decode([guess])) + piece
        return restored

    @torch.no_grad()
    def _continued(self, text: str, params: dict[str, Any]) -> str:
        """The continuation without the text, limited by the model's positions."""
        longest = self._tokenizer.model_max_length
        tokens_1T = self._tokenizer(text, return_tensors="pt")["input_ids"]
        if tokens_1T.shape[1] >= longest:
            tokens_1T = tokens_1T[:, -longest // 2 :]
        torch.manual_seed(params["seed"])
        temperature = params["temperature"]
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        made_1T = self._model.generate(
            tokens_1T,
            attention_mask=torch.ones_like(tokens_1T),
            max_new_tokens=min(params["max_new_tokens"], longest - tokens_1T.shape[1]),
            # No padding is used, but transformers warns at every call without this.
            pad_token_id=self._tokenizer.eos_token_id,
            **sampling,
        )
        return str(self._tokenizer.decode(made_1T[0, tokens_1T.shape[1] :], skip_special_tokens=True))
