"""Commands, in the order in which a user meets them.

What a command needs is imported when it runs: `pretune --help` answers at once.
"""

import typer

from sweeps import cli_after as after
from sweeps import cli_before as before
from sweeps import cli_downstream as downstream
from sweeps import cli_sweep as at_sweep
from sweeps import cli_train as at_train

_BEFORE, _SWEEP, _AFTER = "Before a sweep", "The sweep", "After a sweep"

app = typer.Typer(
    name="pretune",
    help="Find the small language model that trains best inside the memory you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 2 fault in an input, 3 no trial completed, 4 trials given up, 130 interrupted.",
)

# One line each in the list, so that it fits a screen: the first line of the command's docstring.
app.command(rich_help_panel=_BEFORE)(before.new)
app.command(rich_help_panel=_BEFORE)(before.plan)
app.command(rich_help_panel=_BEFORE)(before.estimate)
app.command(rich_help_panel=_BEFORE)(before.prepare)
app.command(rich_help_panel=_SWEEP)(at_sweep.sweep)
app.command(rich_help_panel=_SWEEP)(at_train.train)
app.command(rich_help_panel=_AFTER)(after.ui)
app.command(rich_help_panel=_AFTER)(after.report)
app.command(rich_help_panel=_AFTER)(after.evaluate)
app.command("fill-mask", rich_help_panel=_AFTER)(after.fill_mask)
app.command(rich_help_panel=_AFTER)(after.generate)
app.command(rich_help_panel=_AFTER)(downstream.finetune)
app.command(rich_help_panel=_AFTER)(downstream.embed)
app.command(rich_help_panel=_AFTER)(after.export)


def main() -> None:
    """Entry point of `pretune`."""
    app()
