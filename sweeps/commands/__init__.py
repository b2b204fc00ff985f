"""The command line: commands by stage of use, shared options, exit codes, final summary."""
