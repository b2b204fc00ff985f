"""The platform from Python: `import pretune` in scripts and notebooks, with the sweeps that the commands run."""
