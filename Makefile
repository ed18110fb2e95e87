# `make demo` and `make test` need nothing but Python 3.11 or newer: each makes .venv first.
PYTHON ?= python3
BIN := .venv/bin
# Without an NVIDIA GPU a CPU build of torch does: the constraint names one that some machines offer
# as a wheel of its own, which spares gigabytes of CUDA.
CONSTRAINTS := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --constraint constraints-cpu.txt)

.PHONY: demo test reliability clean

demo: .venv/made
	$(BIN)/attunet3d demo demo

test: .venv/made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal

# Odd and hostile files, kills, faults and fuzzing: benchmarks/reliability.md, in 15 minutes.
reliability: .venv/made
	$(BIN)/python -m benchmarks.reliability

.venv/made: pyproject.toml constraints-cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "attunet3d needs Python 3.11 or newer; run make PYTHON=python3.11")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv demo build dist *.egg-info
