# The two commands of the README, and what CI runs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_TEST := $(VENV)/.ready-test

.PHONY: quickstart test test-older-cpu test-busy without-ray quick long ray lint types systems

quickstart: $(READY)
	$(BIN)/pretune sweep sweeps/configs/quickstart.yaml

# The chains of sweeps/configs at laptop size, beside what their authors logged: 34 minutes on two cores with some other work beside; not part of test.
systems: $(READY)
	$(BIN)/python tests/run_systems.py

test: lint types without-ray ray

# The tests of `test` as an older processor runs them: it has neither bf16, so `auto` is fp32, nor AVX-512.
test-older-cpu:
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(MAKE) without-ray ray

# The tests of `test` beside two busy loops, which last as long as the shell of this recipe and end with it in any way.
test-busy:
	for loop in 1 2; do (while kill -0 $$$$; do :; done) 2>/dev/null & done; $(MAKE) without-ray ray

# One process a core, each with one thread of torch's. What starts Ray takes all cores: two at a time, because each
# spends half of its time waiting for processes to start, in the order of tests/conftest.py.
# Modules are compiled once, also where the environment says otherwise: every process would do it again.
A_PROCESS_A_CORE := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Together, because each process of pytest spends a quarter of a minute on imports.
without-ray: $(READY_TEST)
	$(A_PROCESS_A_CORE) -m "not ray and not slow"

quick: $(READY_TEST)
	$(A_PROCESS_A_CORE) -m "not ray and not slow and not long"

long: $(READY_TEST)
	$(A_PROCESS_A_CORE) -m "long and not ray and not slow"

ray: $(READY_TEST)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "ray and not slow"

lint: $(READY_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY_TEST)
	$(BIN)/mypy

# With uv where it can be had, else with pip.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python .ci/install_packages.py --quiet --constraint constraints.txt --editable .
	touch $@

$(READY_TEST): $(READY)
	$(BIN)/python .ci/install_packages.py --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
