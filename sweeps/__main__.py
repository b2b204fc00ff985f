"""`python -m sweeps` is `pretune`, so that `ray job submit --working-dir .` needs no install step of its own."""

import sys

from sweeps.commands.module_search import put_ours_first


def main() -> None:
    """Run a command, after Python's search is settled; a line for each file that is left out or in the way."""
    lines = put_ours_first()
    # From here on an import finds ours and Python's modules.
    from data_pipeline.schema.terminal_text import echo
    from sweeps.commands import cli

    for line in lines:
        echo(f"python   {line}", file=sys.stderr)
    cli.main()


if __name__ == "__main__":
    main()
