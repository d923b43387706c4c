# `make demo` and `make test` do everything from a bare checkout: virtual environment, packages, servers, work.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test check lint types contracts shape fast chain quality format clean

help:
	@echo "make demo     the whole chain from web pages to a chat answer, in a workspace here (.catena)"
	@echo "make test     everything that must hold: check, and all tests"
	@echo "make check    style, types, import contracts, sizes"
	@echo "make fast     the tests without those that run whole chains"
	@echo "make quality  the demo's full recipe in a new workspace, held to its promised accuracies (about 6 minutes)"

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Catena needs Python 3.11 or newer')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e '.[all]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt tests/plugin/pyproject.toml | $(VENV)/.installed
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install --no-deps -e tests/plugin
	touch $@

demo: $(VENV)/.installed
	$(BIN)/catena run recipes/python-helper.yaml --report report.html
	$(BIN)/catena chat python-helper@production --examples 3
	@echo
	@echo "The whole story is in report.html. Go on with:"
	@echo "  $(BIN)/catena chat python-helper@production       ask more"
	@echo "  $(BIN)/catena serve python-helper@production      an OpenAI-compatible server on loopback"
	@echo "  $(BIN)/catena show python-helper@production       what it is and how good"
	@echo "  $(BIN)/catena lineage python-helper@production    where it comes from"

test: check
	sh scripts/system-packages
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup

check: lint types contracts shape

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

shape: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/test_shape.py

fast: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup -m "not chain"

chain: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m chain

quality: $(VENV)/.dev
	$(BIN)/python benchmarks/demo_quality.py

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist src/*.egg-info
