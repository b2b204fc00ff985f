"""`pretune explain`, and the option of `pretune sweep` that does the same."""

from typing import Annotated

import typer

from sweeps.commands.command_frame import explains_faults, terminal


def complete_key(incomplete: str) -> list[str]:
    """Dotted paths that a shell offers."""
    from sweeps.commands.explanations import known_paths

    return [path for path in known_paths() if path.startswith(incomplete)]


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
    from sweeps.commands.explanations import print_key, print_sections

    if key is None:
        print_sections(terminal())
    else:
        print_key(key, terminal())


@explains_faults
def _explain_and_exit(context: typer.Context, key: str | None) -> None:
    if key is not None and not context.resilient_parsing:  # A shell that completes parses as well.
        from sweeps.commands.explanations import print_key

        print_key(key, terminal())
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
