"""A model of a user's class comes back from its folder as it was, and only where its code is permitted."""

from pathlib import Path

import pytest
import torch
from given_classes import EXAMPLES, permitted, run_of, written
from tokenizers import Tokenizer, models

from core.model_files.given_folder import GIVEN_FILE, export_given, import_given, read_given
from core.models.given_class import GivenModel, build_given
from core.user_code.permitted_code import CodeNotPermittedError
from data_pipeline.tokens.tokenizer import Vocabulary

VOCABULARY = Vocabulary(size=8, pad_id=1, unk_id=3, bos_id=0, eos_id=2, mask_id=4, special_ids=(0, 1, 2, 3, 4))
TOKENS = torch.tensor([[5, 6, 7, 5]])


def exported(tmp_path: Path, model: GivenModel, run) -> Path:  # type: ignore[no-untyped-def]
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 6, "c": 7}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    folder = tmp_path / "best"
    export_given(model, run.model, tmp_path / "tokenizer.json", VOCABULARY, folder)
    return folder


def test_the_model_comes_back_with_frozen_and_tied_tensors(tmp_path: Path) -> None:
    text = """
    class Mine(Base):
        def __init__(self, vocabulary_size, width=16):
            super().__init__(vocabulary_size, width)
            self.head.weight = self.tokens.weight
            self.random = nn.Parameter(torch.randn(width), requires_grad=False)
            self.register_buffer("scale", torch.rand(width))

        def mix(self, x):
            return x * self.random + self.scale
    """
    written(tmp_path, text)
    run = run_of(permitted("mine.py:Mine", tmp_path))
    model = build_given(run.model, VOCABULARY.size, pad_id=1)
    folder = exported(tmp_path, model, run)
    torch.manual_seed(99)
    found = import_given(folder, read_given(folder))
    assert torch.equal(found.hidden_states(TOKENS), model.hidden_states(TOKENS))
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in folder.iterdir())


def test_reading_a_folder_runs_no_code(tmp_path: Path) -> None:
    written(tmp_path, "class Mine(Base): pass")
    run = run_of(permitted("mine.py:Mine", tmp_path))
    folder = exported(tmp_path, build_given(run.model, VOCABULARY.size, pad_id=1), run)
    file = folder / GIVEN_FILE
    file.write_text(file.read_text().replace(str(run.model.class_digest), "0" * 64))
    found = read_given(folder)
    with pytest.raises(CodeNotPermittedError):
        import_given(folder, found)


@pytest.mark.parametrize("text", ["[]", "{}", '{"model": 3}', '{"format_version": 1, "model": {"layers": 2}}'])
def test_a_damaged_folder_is_a_fault_with_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / GIVEN_FILE).write_text(text)
    with pytest.raises(ValueError, match=GIVEN_FILE):
        read_given(tmp_path)


def test_a_module_with_save_pretrained_also_writes_its_own_files(tmp_path: Path) -> None:
    import transformers  # It takes seconds.

    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    run = run_of(permitted("wrapped_bert.py:WrappedBert", EXAMPLES), settings, masked=True)
    model = build_given(run.model, VOCABULARY.size, pad_id=1)
    folder = exported(tmp_path, model, run)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    model.eval()
    torch.testing.assert_close(theirs(TOKENS).logits, model.hidden_states(TOKENS), rtol=1e-5, atol=1e-6)
