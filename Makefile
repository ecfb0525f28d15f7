# make demo    train on the digits, evaluate with K up to 5000, and say where the report is
# make test    format, lint, types and the tests that take minutes together
# make test-all    the same with the tests marked slow
# make docs    build the documentation in build/docs
# All make .venv and install the package into it first, and are safe to repeat.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all docs clean
.DEFAULT_GOAL := demo

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/pyrovae train --folder runs/demo --epochs 100
	$(BIN)/pyrovae evaluate runs/demo

test: TESTS = -m "not slow"
test test-all: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(TESTS)

docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees examples/docs build/docs
	@echo build/docs/index.html

.venv/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || (echo "pyrovae needs Python 3.11 or later; name one: make PYTHON=python3.12" && exit 1)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch .venv/installed

clean:
	rm -rf .venv build *.egg-info
