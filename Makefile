# The two commands of the README, and what CI runs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_TEST := $(VENV)/.ready-test

.PHONY: quickstart test quick lint types benchmarks-quick clean

quickstart: $(READY)
	$(BIN)/pretune sweep sweeps/configs/quickstart.yaml

test: $(READY_TEST) lint types
	$(BIN)/python -m pytest

quick: $(READY_TEST)
	$(BIN)/python -m pytest -m "not ray and not slow"

lint: $(READY_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY_TEST)
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(READY_TEST): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
