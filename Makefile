# `make demo` and `make test` need nothing but Python 3.11 or newer: each makes .venv first, with the
# versions of constraints.txt, so that a new release of another package changes no result here.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: demo test test-newest lock rooms docs reliability mutants clean

demo: .venv/made
	$(BIN)/attunet3d demo demo

test: .venv/made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal

# The same tests with the newest release of everything; TORCH=torch==2.13.0 keeps one version.
test-newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --editable '.[dev]' $(TORCH)
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -q -n 2 --dist worksteal

# Write constraints.txt anew: the newest releases but for torch, which TORCH=2.13.0 names.
lock: .venv/made
	$(BIN)/python .ci/lock.py $(TORCH)

# Build the documentation into site/; `mkdocs serve` shows it while it is written.
docs: .venv/made
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python docs/write_reference.py
	$(BIN)/mkdocs build --strict

# Draw docs/rooms.svg anew, from the imports.
rooms: .venv/made
	$(BIN)/python docs/draw_rooms.py

# Odd and hostile files, kills, faults and fuzzing: benchmarks/reliability.md, in 15 minutes.
reliability: .venv/made
	$(BIN)/python -m benchmarks.reliability

# Change operators and numbers of ten core modules; a test must fail (benchmarks/mutants.py). An hour.
mutants: .venv/made
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,mutants]'
	$(BIN)/python -m benchmarks.mutants

.venv/made: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "attunet3d needs Python 3.11 or newer; run make PYTHON=python3.11")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-newest demo build dist *.egg-info
