# Everything goes into .venv in this folder; nothing else on the machine is touched. Each target says what it does and
# is safe to run twice: the set-up is repeated only when pyproject.toml, the Python or the machine has changed.

VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST_ARGS ?=

# PYTHON=python3.12 make ... chooses another one.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
  $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && echo $$p && break; done)
endif

SETUP = $(PYTHON) lightning_mvrec/doctor.py --install --venv $(VENV) --project .
# One thread a process: the tests run as many processes as there are workers, and some start two more.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

.PHONY: help python setup quickstart test test-slow test-gpu lint docs wheel clean

help:
	@echo "make quickstart  set up, then train and compare on embedded data (one CPU is enough)"
	@echo "make test        set up, then run the tests"
	@echo "make test-slow   the tests that take longer"
	@echo "make test-gpu    the tests that need a CUDA device"
	@echo "make lint        ruff, mypy and the import contracts"
	@echo "make docs        build the documentation into site/"
	@echo "make wheel       build a wheel into dist/"
	@echo "make clean       remove .venv and what the targets above have built"

python:
	@test -n "$(PYTHON)" || { echo "Python 3.10 to 3.13 is needed, and none is on the PATH; PYTHON=/path/to/python make ..."; exit 1; }

setup: python
	@$(SETUP)

quickstart: setup
	$(BIN)/mvrec compare --config recipes/quickstart.yaml

test: python
	@$(SETUP) --group test
	$(PYTEST) -m "not slow and not gpu"

# Exit status 5 is "no test was selected".
test-slow: python
	@$(SETUP) --group test --group test-slow
	$(PYTEST) -m "slow and not gpu" || test $$? -eq 5

test-gpu: python
	@$(SETUP) --group test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

lint: python
	@$(SETUP) --group lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: python
	@$(SETUP) --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file .ci/mkdocs.yml

wheel: python
	@$(SETUP) --group wheel
	rm -rf build  # setuptools would pack files that were removed since
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist site lightning_mvrec.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
