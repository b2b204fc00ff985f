"""A trained model from a sweep's results folder, a trial, a folder of transformers or an adapter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from core.distributed.workers import Workers
from core.memory.out_of_memory import OomFacts
from core.model_files.adapter_folder import import_adapted, is_adapter
from core.model_files.given_folder import export_given, holds_given, import_given, read_given
from core.model_files.huggingface import export_huggingface, import_huggingface, why_not_exportable
from core.model_files.initial_weights import whole_model
from core.models.decoder import LlamaDecoder
from core.models.generation import Filling, Sampling, fill_mask, stream
from core.models.given_class import GivenModel
from core.models.language_model import LanguageModel
from core.settings.model_config import ModelConfig
from core.settings.precision import choose_precision
from core.step.evaluation import evaluate, holdout_source
from data_pipeline.files.own_files import fresh_folder
from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.corpus_files import find_files
from data_pipeline.reading.file_inspection import examine_files
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.chat_template import ChatTemplate, Turn, chat_with_marks, source_in
from data_pipeline.tokens.template_process import TemplateError
from data_pipeline.tokens.token_blocks import PreparedCorpus, open_prepared
from data_pipeline.tokens.tokenizer import Vocabulary, load_tokenizer, panics_explained, vocabulary_of
from sweeps.records.results_folder import ResultsError
from sweeps.settings.class_of_file import permit_class, read_source, remember_source
from sweeps.trained_models.model_folder import prepared_of, trial_folder

_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class TrainedModel:
    """A model with its tokenizer."""

    model: LanguageModel
    config: ModelConfig
    tokenizer: Tokenizer
    tokenizer_path: Path
    vocabulary: Vocabulary
    prepared: Path | None
    """The prepared corpus of its training; None if it is unknown."""
    chat: ChatTemplate | None = None
    """Chat template of its training; None: it was not trained on conversations."""
    classes: tuple[str, ...] = ()
    """Classes of a classifier; empty for language models."""

    def fill(self, text: str, *, num_candidates: int) -> list[list[tuple[str, float]]]:
        """The likeliest fillings of each mask of a text, as (text, probability).

        Raises:
            InputFault: The model is a causal LM or a classifier, or the text has no mask or too many tokens.
        """
        self._check_is_language_model()
        mask_id = self.vocabulary.mask_id
        if self.model.is_causal or mask_id is None:
            raise InputFault("this model is a causal LM and fills no masks; use pretune generate")
        mask = str(self.tokenizer.id_to_token(mask_id))
        if mask not in text:
            raise InputFault(f"the text has no {mask}: write it where a token is missing, as in 'the {mask} is red'")
        vocabulary = self.vocabulary
        tokens = [vocabulary.bos_id, *self._encode(text), vocabulary.eos_id]
        if len(tokens) > self.config.num_positions:
            raise InputFault(f"the text has {len(tokens)} tokens, and the model takes {self.config.num_positions}")
        found = fill_mask(self.model, tokens, mask_id=mask_id, num_candidates=num_candidates)
        return [[self._in_words(filling) for filling in fillings] for fillings in found]

    def continue_text(self, prompt: str, *, max_new_tokens: int, sampling: Sampling, seed: int) -> Iterator[str]:
        """The continuation of a text, piece by piece.

        Raises:
            InputFault: The model is a masked LM.
        """
        if not isinstance(self.model, LlamaDecoder | GivenModel) or not self.model.is_causal:
            raise InputFault("this model is a masked LM and continues no texts; use pretune fill-mask")
        tokens = [self.vocabulary.bos_id, *self._encode(prompt)]
        return self._told(
            stream(
                self.model,
                tokens,
                max_new_tokens=max_new_tokens,
                end_ids=(self.vocabulary.eos_id,),
                sampling=sampling,
                seed=seed,
            )
        )

    def answer(self, turns: Sequence[Turn], *, max_new_tokens: int, sampling: Sampling, seed: int) -> Iterator[str]:
        """The assistant's answer to these turns, piece by piece, up to its end mark.

        Raises:
            InputFault: The model was not trained on conversations, or its template refuses the turns.
        """
        if self.chat is None or not isinstance(self.model, LlamaDecoder | GivenModel):
            raise InputFault("this model has no chat template, so it continues texts; train it with objective: sft")
        try:
            tokens = self._encode(self.chat.prompt(turns))
        except TemplateError as cause:
            raise InputFault(f"the model's chat template refuses this conversation: {cause}") from cause
        end_ids = self.chat.end_ids(self.tokenizer)
        return self._told(
            stream(self.model, tokens, max_new_tokens=max_new_tokens, end_ids=end_ids, sampling=sampling, seed=seed)
        )

    def _told(self, tokens: Iterator[int]) -> Iterator[str]:
        new: list[int] = []
        said = ""
        for token in tokens:
            new.append(token)
            text = self._decode(new)
            # A character of several tokens decodes only with the last of them.
            if not text.endswith("\ufffd"):
                yield text[len(said) :]
                said = text
        yield self._decode(new)[len(said) :]

    def evaluate(self, corpus: Path | None, *, work_folder: Path, all_tokens: bool = False) -> dict[str, float]:
        """Metrics on the holdout of its training, or on a whole corpus, under the masks of every evaluation.

        Args:
            work_folder: Scratch folder for the prepared corpus.
            all_tokens: Add the accuracy over all tokens, masked or not.

        Raises:
            InputFault: No corpus is given and none is known, or the corpus cannot be read.
        """
        self._check_is_language_model()
        if corpus is None and self.prepared is None:
            raise InputFault("the corpus of this model is unknown, or was deleted: give --corpus FILE")
        data = open_prepared(self.prepared) if corpus is None and self.prepared else self._prepare(corpus, work_folder)
        workers = Workers()
        metrics = evaluate(
            self.model,
            holdout_source(data, is_causal=self.config.is_causal),
            workers,
            micro_batch_size=_ROWS_AT_ONCE,
            precision=choose_precision("fp32", workers.device),
            all_tokens=all_tokens and not self.config.is_causal,  # A causal LM predicts all tokens anyway.
        )
        if isinstance(metrics, OomFacts):
            raise InputFault(f"evaluation ran out of memory on this machine: {metrics.message}")
        return metrics

    def export(self, target: Path) -> None:
        """Write the model as a folder that Hugging Face transformers loads; of a user's class, as pretune loads it.

        Raises:
            InputFault: The folder exists, or transformers has no such model.
        """
        if target.exists():
            raise InputFault(f"{target} exists; name a new folder")
        foreign = None if isinstance(self.model, GivenModel) else why_not_exportable(self.config)
        if foreign is not None:
            raise InputFault(foreign)
        partial = fresh_folder(target.with_name(f".{target.name}-partial"))
        template = None if self.chat is None else self.chat.source
        if isinstance(self.model, GivenModel):
            parts = (self.config, self.tokenizer_path, self.vocabulary, partial)
            export_given(self.model, *parts, chat_template=template)
            partial.rename(target)
            return
        export_huggingface(
            self.model,
            self.config,
            self.tokenizer_path,
            self.vocabulary,
            partial,
            chat_template=template,
            classes=self.classes or None,
        )
        partial.rename(target)

    def _check_is_language_model(self) -> None:
        if self.classes:
            raise InputFault(
                f"this model classifies texts into {len(self.classes)} classes and predicts no tokens; its metrics are "
                "in metrics.json beside it; use pipeline('text-classification') of transformers"
            )

    def _prepare(self, corpus: Path | None, work_folder: Path) -> PreparedCorpus:
        config = CorpusConfig(path=str(corpus), holdout=0.0)
        has_dialogues = examine_files(find_files(config), config, memory=None).has_dialogues
        data = prepare(
            config,
            TokenizerConfig(kind="file", path=str(self.tokenizer_path)),
            PackingConfig(
                sequence_length=self.config.sequence_length, rows="conversations" if has_dialogues else "packed"
            ),
            prepared_folder=work_folder,
            run=for_each_parcel_here,
        )
        return replace(data, holdout=data.train)

    def _encode(self, text: str) -> list[int]:
        with panics_explained(str(self.tokenizer_path)):
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        with panics_explained(str(self.tokenizer_path)):
            return str(self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def _in_words(self, filling: Filling) -> tuple[str, float]:
        return self._decode([filling.token], skip_special_tokens=False), filling.probability


def load_trained(path: Path, *, prepared: Path | None = None, allow_code: bool = False) -> TrainedModel:
    """The model in a folder, in fp32 and evaluation mode, on the CPU.

    Args:
        prepared: The prepared corpus of its training, for a folder that does not name it.
        allow_code: The code of a user's class may run. No folder permits it itself.

    Raises:
        CodeNotPermittedError: The model is of a user's class, and its code is not permitted.
        InputFault: The folder holds no trained model; the message names the missing part.
    """
    if (path / "trial.json").is_file():
        return _of_trial(path, allow_code=allow_code)
    if holds_given(path):
        return _of_given(path, prepared, allow_code=allow_code)
    if holds_given(path / "best"):
        return _of_given(path / "best", prepared_of(path), allow_code=allow_code)
    if is_adapter(path):
        return _of_adapter(path)
    folder = path if (path / "config.json").is_file() else path / "best"
    if not (folder / "config.json").is_file():
        raise ResultsError(
            f"{path} holds no trained model. Give a sweep's folder (results/<name>-<id>), one of its trials "
            "(.../trials/trial-0001), a folder of Hugging Face transformers, or an adapter's (adapter_config.json)."
        )
    try:
        loaded = import_huggingface(folder)
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        vocabulary = vocabulary_of(tokenizer)
        source = source_in(folder)
    except (OSError, ValueError) as cause:
        raise ResultsError(f"the model in {folder} cannot be loaded: {cause}") from cause
    prepared = prepared_of(path) if folder != path else prepared
    chat = None if source is None else chat_with_marks(source, tokenizer)
    return TrainedModel(
        loaded.model, loaded.config, tokenizer, folder / "tokenizer.json", vocabulary, prepared, chat, loaded.classes
    )


def _of_adapter(path: Path) -> TrainedModel:
    """The base model with the adapter applied."""
    try:
        loaded, base = import_adapted(path)
        tokenizer = load_tokenizer(base / "tokenizer.json")
        vocabulary = vocabulary_of(tokenizer)
        source = source_in(path) or source_in(base)
    except (OSError, ValueError) as cause:
        raise ResultsError(str(cause)) from cause
    chat = None if source is None else chat_with_marks(source, tokenizer)
    return TrainedModel(loaded.model, loaded.config, tokenizer, base / "tokenizer.json", vocabulary, None, chat)


def _of_given(folder: Path, prepared: Path | None, *, allow_code: bool) -> TrainedModel:
    """A model of a user's class."""
    try:
        found = read_given(folder)
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        source = source_in(folder)
    except (OSError, ValueError) as cause:
        raise ResultsError(f"the model in {folder} cannot be loaded: {cause}") from cause
    code = read_source(folder)
    if code is not None:
        remember_source(code)
    permit_class(found.config, is_trusted=allow_code)
    try:
        model = import_given(folder, found)
    except InputFault:
        raise
    except (OSError, ValueError) as cause:
        raise ResultsError(f"the model in {folder} cannot be loaded: {cause}") from cause
    chat = None if source is None else chat_with_marks(source, tokenizer)
    tokenizer_path = folder / "tokenizer.json"
    return TrainedModel(model, found.config, tokenizer, tokenizer_path, vocabulary_of(tokenizer), prepared, chat)


def _of_trial(path: Path, *, allow_code: bool) -> TrainedModel:
    found = trial_folder(path)
    permit_class(found.model, is_trusted=allow_code)
    tokenizer = load_tokenizer(found.tokenizer)
    vocabulary = vocabulary_of(tokenizer)
    assert found.run is not None
    try:
        model = whole_model(found.run, vocabulary, found.weights)
    except (OSError, ValueError) as cause:  # Of adapters: the base was deleted or replaced.
        raise ResultsError(f"the model of {path.name} cannot be loaded: {cause}") from cause
    prepared = prepared_of(path.absolute().parents[1])
    source = None if prepared is None else open_prepared(prepared).manifest.chat_template
    chat = None if source is None else chat_with_marks(source, tokenizer)
    return TrainedModel(model.eval(), found.model, tokenizer, found.tokenizer, vocabulary, prepared, chat)
