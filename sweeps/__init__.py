"""Many training runs: sweep files, search, lanes, tracking, reports, the command line."""
