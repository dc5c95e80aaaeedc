# Each target does its whole set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
NEWEST := .venv-newest
CPU_TORCH := https://download.pytorch.org/whl/cpu
PYTEST ?= $(RUN)/python -m pytest

.PHONY: help demo test test-slow test-all fuzz faults kills coverage check lint fix docs messages site newest install clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      a small model learns to reduce fractions, in minutes, on a CPU"
	@echo "make test      the quick tests"
	@echo "make test-all  with the slow tests"
	@echo "make lint      ruff and mypy"
	@echo "make check     lint, then the quick tests"
	@echo "make coverage  the quick tests, and the share of src/ that they run; fails below 90 %"
	@echo "make fix       let ruff repair what it can"
	@echo "make fuzz      100,000 mutated inputs; make faults, make kills: the other long tests"
	@echo "make docs      write the generated pages again: commands, API, recipe keys, failures"
	@echo "make site      build the documentation, in English and Chinese, as pages in build/site/site"
	@echo "make messages  list the messages without a Chinese twin"
	@echo "make newest    the quick tests, with the newest release of each dependency"

demo: install
	$(RUN)/glmtune demo

test: install
	$(PYTEST) -n 2 -m "not slow and not gpu"

test-slow: install
	$(PYTEST) -n 2 -m "slow and not gpu"

test-all: test test-slow

# What takes an hour: inputs that are mutated at random, every write that fails, a thousand kills.
fuzz: install
	$(RUN)/python -m tests.fuzz --count 100000 --seed $$(date +%Y%m%d)

faults: install
	GLMTUNE_FAULTS=all $(PYTEST) -m "" tests/train/test_faults.py tests/use/test_faults.py \
		tests/use/export/test_faults.py tests/data/test_faults.py

kills: install
	$(RUN)/python -m tests.train.kills 1000 --seed $$(date +%Y%m%d)

# Child processes and pytest's workers are counted too: see [tool.coverage.run] in pyproject.toml.
coverage: install
	$(RUN)/coverage erase
	$(MAKE) test PYTEST="$(RUN)/coverage run -m pytest"
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
	$(RUN)/python docs/make_recipe_keys.py
	$(RUN)/python docs/make_faq.py

# The site is in build/site/site; it can be opened from the disk.
site: install
	$(RUN)/python docs/make_site.py

# Texts without a twin get an empty one in messages_zh.po, and fail the target until it is filled in.
messages: install
	$(RUN)/python -m tests.messages write

# Of one release of torch the CPU build is preferred, since its version ends in +cpu.
# The ranges of pyproject.toml are ignored, which pip reports as conflicts: that is the question here.
newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --retries 1 --extra-index-url $(CPU_TORCH) torch
	$(NEWEST)/bin/pip install --quiet --editable '.[dev]'
	$(NEWEST)/bin/python -m tests.newest names | xargs $(NEWEST)/bin/pip install --quiet --upgrade
	$(NEWEST)/bin/python -m tests.newest outside
	$(NEWEST)/bin/python -m pytest -n 2 -m "not slow and not gpu"

install: $(VENV)/installed

# torch goes first and by itself: where the default index has no CPU build, PyTorch's own has.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is not Python 3.11 or newer. Name one that is: make test PYTHON=python3.12"; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --constraint constraints.txt torch \
		|| $(RUN)/pip install --constraint constraints.txt --index-url $(CPU_TORCH) torch
	$(RUN)/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) .mypy_cache .ruff_cache .pytest_cache .coverage .coverage.*
