"""`python -m sweeps` is `pretune`, so that `ray job submit --working-dir .` needs no install step of its own."""

from sweeps.commands.cli import main

if __name__ == "__main__":
    main()
