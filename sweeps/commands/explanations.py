"""Explanations of settings on the terminal, from the docstrings of their fields."""

import difflib
import textwrap
from collections.abc import Iterator

from rich.console import Console

from data_pipeline.schema.terminal_text import echo
from data_pipeline.schema.user_errors import InputFault
from sweeps.finetuning.finetune_config import SWEEPABLE, FinetuneConfig
from sweeps.search_space.distribution import Distribution
from sweeps.settings.field_docs import ANY_SETTING, FieldDoc, field_docs
from sweeps.settings.setting_paths import ARGUMENTS, outermost
from sweeps.settings.settings_faults import first_sentence
from sweeps.settings.size_presets import SIZES
from sweeps.settings.sweep_config import UNSWEEPABLE, SweepConfig
from sweeps.settings.sweep_file import sweepable_paths

_WIDEST = 100
"""Columns of a paragraph that one reads with ease."""
_IN_A_SWEEP, _IN_A_FINETUNING = "sweep file", "file of a fine-tuning"


def known_paths() -> list[str]:
    """Dotted paths of all sections and settings, each once."""
    return list(dict.fromkeys(doc.path for docs in _kinds().values() for doc in docs))


def print_sections(console: Console) -> None:
    """All sections of both kinds of files, a sentence each."""
    kinds = _kinds()
    for kind, docs in kinds.items():
        console.print(f"Sections and settings of a {kind}", highlight=False)
        for doc in docs:
            if "." not in doc.path:
                entry = f"  {doc.path:<16}{first_sentence(doc.text)}"
                words = textwrap.fill(entry, min(console.width, _WIDEST), subsequent_indent=" " * 18)
                echo(words, file=console.file)
        console.print()
    console.print("A section or setting in full: pretune explain training, pretune explain training.beta2")


def print_key(key: str, console: Console) -> None:
    """A setting, or a section with all of its settings.

    Raises:
        InputFault: No file has such a setting; names those that may be meant.
    """
    kinds = _kinds()
    path = _path_of(key.strip())
    found = {kind: [doc for doc in docs if f"{doc.path}.".startswith(f"{path}.")] for kind, docs in kinds.items()}
    if not any(found.values()):
        raise InputFault(f"{key} is not a setting of a sweep file or of a fine-tuning; {_remedy(path, known_paths())}")
    common = set(found[_IN_A_SWEEP])
    found[_IN_A_FINETUNING] = [doc for doc in found[_IN_A_FINETUNING] if doc not in common]
    paragraphs = []
    for kind, docs in found.items():
        if docs and kind != _IN_A_SWEEP:
            paragraphs.append(f"In a {kind} (pretune finetune):")
        for doc in docs:
            paragraphs.append(f"{doc.path}: {'; '.join(_facts(doc, kind))}\n{_indented(doc.text, console.width)}")
    echo("\n\n".join(paragraphs), file=console.file)


def _kinds() -> dict[str, list[FieldDoc]]:
    """All settings of each kind of file."""
    # `sizes` is resolved before a file becomes a config, so no field has its docstring.
    sizes = FieldDoc("sizes", "section", None, SIZES, is_section=True, is_required=False)
    return {
        _IN_A_SWEEP: [*field_docs(SweepConfig), sizes],
        _IN_A_FINETUNING: [*field_docs(FinetuneConfig), sizes],
    }


def _indented(text: str, width: int) -> str:
    """Folded at words, but for an example: it is there to be copied."""
    words, label, example = text.partition("Example: ")
    folded = textwrap.fill(words, min(width, _WIDEST) - 4, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent(f"{folded}\n{label}{example.strip('`')}" if example else folded, "    ")


def _path_of(key: str) -> str:
    """The path under which a key is explained: faults name `stages.0.tokens`, `search.training.beta2.uniform` and
    `sizes.full.model.layers`."""
    parts = [part for part in key.split(".") if not part.isdigit()] or [key]
    if parts[0] == "sizes" and len(parts) > 2:
        parts = parts[2:]
    if parts[0] == "search" and parts[-1] in Distribution.model_fields:
        parts = ["search", ANY_SETTING, parts[-1]]
    elif parts[0] in ("search", "start_with") and parts[1:] and parts[1] != ANY_SETTING:
        parts = parts[1:]
    if ".".join(parts).startswith(ARGUMENTS):
        parts = parts[:2]  # The arguments of a class have names of their own.
    return ".".join(parts)


def _remedy(path: str, known: list[str]) -> str:
    last = path.rpartition(".")[2]
    meant = outermost(one for one in known if one.rpartition(".")[2] == last)
    if not meant and "." in path:
        meant = difflib.get_close_matches(path, known, n=1)
    if not meant:
        near = difflib.get_close_matches(last, [one.rpartition(".")[2] for one in known], n=1)
        meant = [one for one in known if [one.rpartition(".")[2]] == near]
    return f"did you mean {' or '.join(meant)}?" if meant else "pretune explain lists all"


def _facts(doc: FieldDoc, kind: str) -> Iterator[str]:
    yield doc.values
    if doc.is_required:
        yield "required"
    if doc.default is not None:
        yield f"default {doc.default}"
    if kind == _IN_A_SWEEP and doc.path in UNSWEEPABLE:
        yield f"cannot be swept: {UNSWEEPABLE[doc.path]}"
    if doc.path in (sweepable_paths() if kind == _IN_A_SWEEP else SWEEPABLE):
        yield "can be swept"
