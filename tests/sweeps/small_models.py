"""Models of random weights as folders of Hugging Face transformers."""

from pathlib import Path

import torch

from core.model_files.huggingface import export_huggingface
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from data_pipeline.schema.corpus_config import TokenizerConfig
from data_pipeline.tokens.tokenizer import train_tokenizer, vocabulary_of

TEXTS = [f"the {color} {animal} sees a {color} house" for color in ("red", "old", "big") for animal in ("cat", "dog")]
SMALL = {"layers": 2, "width": 32, "heads": 2, "sequence_length": 32}


def exported(folder: Path, family: str) -> Path:
    """`folder`/best; its weights are large, so that no two tokens are as likely."""
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=300, min_frequency=1), TEXTS)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "trained.json"))
    config = ModelConfig.model_validate({"family": family} | SMALL)
    torch.manual_seed(0)
    model = build_model(config, vocabulary_of(tokenizer).size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    export_huggingface(model, config, folder / "trained.json", vocabulary_of(tokenizer), folder / "best")
    return folder / "best"
