"""`pretune explain`: a setting of a file in words, from the docstring of its field."""

import difflib
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.schema.user_errors import InputFault
from sweeps.commands.command_frame import explains_faults, terminal

if TYPE_CHECKING:
    from sweeps.settings.field_docs import FieldDoc

_WIDEST = 100
"""Columns of a paragraph that one reads with ease."""
_IN_A_SWEEP, _IN_A_FINETUNING = "sweep file", "file of a fine-tuning"


def complete_key(incomplete: str) -> list[str]:
    """Dotted paths that a shell offers."""
    paths = {doc.path: None for docs in _kinds().values() for doc in docs}
    return [path for path in paths if path.startswith(incomplete)]


@explains_faults
def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="A setting or section, as training.beta2 or search. Without: all sections.",
            show_default=False,
            autocompletion=complete_key,
        ),
    ] = None,
) -> None:
    """Explain a setting: its values, unit, default and use.

    Sweep files and files of a fine-tuning (pretune finetune) are covered. A section shows all of its settings.
    """
    if key is None:
        _print_sections()
    else:
        _print_key(key)


@explains_faults
def _explain_and_exit(context: typer.Context, key: str | None) -> None:
    if key is not None and not context.resilient_parsing:  # A shell that completes parses as well.
        _print_key(key)
        raise typer.Exit


ExplainKey = Annotated[
    str | None,
    typer.Option(
        "--explain",
        metavar="KEY",
        help="Explain a setting, as training.beta2, and do nothing else.",
        is_eager=True,
        callback=_explain_and_exit,
        autocompletion=complete_key,
    ),
]


def _kinds() -> dict[str, list["FieldDoc"]]:
    """All settings of each kind of file."""
    from sweeps.finetuning.finetune_config import FinetuneConfig
    from sweeps.settings.field_docs import FieldDoc, field_docs
    from sweeps.settings.size_presets import SIZES
    from sweeps.settings.sweep_config import SweepConfig

    # `sizes` is resolved before a file becomes a config, so no field has its docstring.
    sizes = FieldDoc("sizes", "section", None, SIZES, is_section=True, is_required=False)
    return {
        _IN_A_SWEEP: [*field_docs(SweepConfig), sizes],
        _IN_A_FINETUNING: [*field_docs(FinetuneConfig), sizes],
    }


def _print_sections() -> None:
    from sweeps.settings.settings_faults import first_sentence

    console, kinds = terminal(), _kinds()
    for kind, docs in kinds.items():
        console.print(f"Sections and settings of a {kind}", highlight=False)
        for doc in docs:
            if "." not in doc.path:
                entry = f"  {doc.path:<16}{first_sentence(doc.text)}"
                words = textwrap.fill(entry, min(console.width, _WIDEST), subsequent_indent=" " * 18)
                console.print(words, markup=False, highlight=False, soft_wrap=True)
        console.print()
    console.print("A section or setting in full: pretune explain training, pretune explain training.beta2")


def _print_key(key: str) -> None:
    console, kinds = terminal(), _kinds()
    path = _path_of(key.strip())
    found = {kind: [doc for doc in docs if f"{doc.path}.".startswith(f"{path}.")] for kind, docs in kinds.items()}
    if not any(found.values()):
        known = list(dict.fromkeys(doc.path for docs in kinds.values() for doc in docs))
        raise InputFault(f"{key} is not a setting of a sweep file or of a fine-tuning; {_remedy(path, known)}")
    common = set(found[_IN_A_SWEEP])
    found[_IN_A_FINETUNING] = [doc for doc in found[_IN_A_FINETUNING] if doc not in common]
    paragraphs = []
    for kind, docs in found.items():
        if docs and kind != _IN_A_SWEEP:
            paragraphs.append(f"In a {kind} (pretune finetune):")
        for doc in docs:
            paragraphs.append(f"{doc.path}: {'; '.join(_facts(doc, kind))}\n{_indented(doc.text, console.width)}")
    console.print("\n\n".join(paragraphs), markup=False, highlight=False, soft_wrap=True)


def _indented(text: str, width: int) -> str:
    """Folded at words, but for an example: it is there to be copied."""
    words, label, example = text.partition("Example: ")
    folded = textwrap.fill(words, min(width, _WIDEST) - 4, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent(f"{folded}\n{label}{example.strip('`')}" if example else folded, "    ")


def _path_of(key: str) -> str:
    """The path under which a key is explained: faults name `stages.0.tokens`, `search.training.beta2.uniform` and
    `sizes.full.model.layers`."""
    from sweeps.settings.field_docs import ANY_SETTING
    from sweeps.settings.search_space import Distribution

    parts = [part for part in key.split(".") if not part.isdigit()]
    if parts[0] == "sizes" and len(parts) > 2:
        parts = parts[2:]
    if parts[0] == "search" and parts[-1] in Distribution.model_fields:
        parts = ["search", ANY_SETTING, parts[-1]]
    elif parts[0] in ("search", "start_with") and parts[1:] and parts[1] != ANY_SETTING:
        parts = parts[1:]
    return ".".join(parts)


def _remedy(path: str, known: list[str]) -> str:
    last = path.rpartition(".")[2]
    meant = [one for one in known if one.rpartition(".")[2] == last]
    if not meant and "." in path:
        meant = difflib.get_close_matches(path, known, n=1)
    if not meant:
        near = difflib.get_close_matches(last, [one.rpartition(".")[2] for one in known], n=1)
        meant = [one for one in known if [one.rpartition(".")[2]] == near]
    return f"did you mean {' or '.join(meant)}?" if meant else "pretune explain lists all"


def _facts(doc: "FieldDoc", kind: str) -> Iterator[str]:
    from sweeps.finetuning.finetune_config import SWEEPABLE
    from sweeps.settings.sweep_config import UNSWEEPABLE
    from sweeps.settings.sweep_file import sweepable_paths

    yield doc.values
    if doc.is_required:
        yield "required"
    if doc.default is not None:
        yield f"default {doc.default}"
    if kind == _IN_A_SWEEP and doc.path in UNSWEEPABLE:
        yield f"cannot be swept: {UNSWEEPABLE[doc.path]}"
    if doc.path in (sweepable_paths() if kind == _IN_A_SWEEP else SWEEPABLE):
        yield "can be swept"
