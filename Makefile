# Each target does its whole set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
CPU_TORCH := https://download.pytorch.org/whl/cpu
PYTEST ?= $(RUN)/python -m pytest

.PHONY: help demo test test-slow test-all coverage check lint fix docs install clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      a small model learns to reduce fractions, in minutes, on a CPU"
	@echo "make test      the quick tests"
	@echo "make test-all  with the slow tests"
	@echo "make lint      ruff and mypy"
	@echo "make check     lint, then the quick tests"
	@echo "make coverage  all tests, and the share of src/ that they run; fails below 90 %"
	@echo "make fix       let ruff repair what it can"
	@echo "make docs      write docs/cli.md and docs/api.md again"

demo: install
	$(RUN)/glmtune demo

test: install
	$(PYTEST) -n 2 -m "not slow and not gpu"

test-slow: install
	$(PYTEST) -n 2 -m "slow and not gpu"

test-all: test test-slow

# Child processes and pytest's workers are counted too: see [tool.coverage.run] in pyproject.toml.
coverage: install
	$(RUN)/coverage erase
	$(MAKE) test-all PYTEST="$(RUN)/coverage run -m pytest"
	$(RUN)/coverage combine -q
	$(RUN)/coverage report

check: lint test

lint: install
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

fix: install
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

docs: install
	$(RUN)/python -m typer glmtune.cli.main utils docs --name glmtune --output docs/cli.md
	$(RUN)/python docs/make_api.py

install: $(VENV)/installed

# torch goes first and by itself: where the default index has no CPU build, PyTorch's own has.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --constraint constraints.txt torch \
		|| $(RUN)/pip install --constraint constraints.txt --index-url $(CPU_TORCH) torch
	$(RUN)/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .coverage .coverage.*
