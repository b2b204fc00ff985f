"""The command line: registers all commands, in the order in which a user needs them.

Each command imports its dependencies when it runs, so `pretune --help` answers at once.
"""

import sys

import typer

from data_pipeline.schema.terminal_text import echo
from sweeps.commands import after_sweep, before_sweep, doctor, downstream, explain, running_sweeps, training_commands
from sweeps.commands.command_frame import EXIT_FAULT, is_told
from sweeps.commands.hidden_arguments import hide_secret_arguments
from sweeps.commands.lost_terminal import ends_with_its_reader, open_closed_streams
from sweeps.commands.usable_folders import settle_folders

_BEFORE, _SWEEP, _AFTER = "Before a sweep", "The sweep", "After a sweep"

app = typer.Typer(
    name="pretune",
    help="Find the small language model that trains best inside the memory you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 2 fault to mend, 3 no trial completed, 4 trials given up, 5 results incomplete, "
    "130 interrupted.",
)

# The list shows the first line of each docstring. Keep it short: the whole list fits one screen.
app.command(rich_help_panel=_BEFORE)(before_sweep.new)
app.command(rich_help_panel=_BEFORE)(explain.explain)
app.command(rich_help_panel=_BEFORE)(before_sweep.schema)
app.command(rich_help_panel=_BEFORE)(before_sweep.plan)
app.command(rich_help_panel=_BEFORE)(before_sweep.estimate)
app.command("check-model", rich_help_panel=_BEFORE)(before_sweep.check_model)
app.command(rich_help_panel=_BEFORE)(before_sweep.prepare)
app.command(rich_help_panel=_BEFORE)(doctor.doctor)
app.command(rich_help_panel=_SWEEP)(training_commands.sweep)
app.command(rich_help_panel=_SWEEP)(training_commands.train)
app.command(rich_help_panel=_SWEEP)(running_sweeps.status)
app.command(rich_help_panel=_SWEEP)(running_sweeps.stop)
app.command(rich_help_panel=_AFTER)(after_sweep.ui)
app.command(rich_help_panel=_AFTER)(after_sweep.report)
app.command(rich_help_panel=_AFTER)(after_sweep.evaluate)
app.command("fill-mask", rich_help_panel=_AFTER)(after_sweep.fill_mask)
app.command(rich_help_panel=_AFTER)(after_sweep.generate)
app.command(rich_help_panel=_AFTER)(downstream.finetune)
app.command(rich_help_panel=_AFTER)(downstream.embed)
app.command(rich_help_panel=_AFTER)(after_sweep.export)


def main() -> None:
    """Run the command of `sys.argv`; `sweeps.__main__` has put our modules first."""
    open_closed_streams()
    with ends_with_its_reader():
        try:
            for line in settle_folders():
                echo(f"temp     {line}", file=sys.stderr)
            hide_secret_arguments()
            app()
        except Exception as error:
            if is_told(error):
                sys.exit(EXIT_FAULT)
            from sweeps.commands.bug_report import report_bug

            report_bug(error)
            sys.exit(1)
