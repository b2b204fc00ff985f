"""`python -m sweeps` is `pretune`, so that `ray job submit --working-dir .` needs no install step of its own."""

import sys

from sweeps.commands.module_search import put_ours_first


def main() -> None:
    """Put our modules first in Python's search, name those that still come before others, and run the command."""
    lines = put_ours_first()
    from data_pipeline.schema.terminal_text import echo

    for line in lines:
        echo(f"python   {line}", file=sys.stderr)
    from sweeps.commands import cli

    cli.main()


if __name__ == "__main__":
    main()
