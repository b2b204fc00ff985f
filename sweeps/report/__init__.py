"""Reports: report.html and EXPERIMENT.md, and comparisons with a baseline or another sweep."""
