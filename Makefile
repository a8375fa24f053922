# Everything here works on a machine with Python 3.11 or newer and make; the rest is installed into this folder.
#
#   make demo    builds a store from real text, answers 300 questions with every pipeline, prints one table
#   make test    runs the fast tests
#   make lint    ruff, mypy, import-linter
#   make setup   only makes the environment (.venv)
#   make clean   removes the environment and everything that was generated

# Nothing is reported to anybody, and no model is downloaded unasked.
export HAYSTACK_TELEMETRY_ENABLED ?= false
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

# Options of `gr demo`, for example: make demo ARGS=--all
ARGS ?=
# More pytest arguments, for example: make test PYTEST_ARGS="tests/data -x"
PYTEST_ARGS ?=

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then command -v $$p; break; fi; done)
UV ?= $(shell command -v uv || echo .tools/bin/uv)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test lint setup clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   \(make .*\)/\1/p' Makefile

demo: $(READY)
	$(BIN)/gr demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -q -m "not slow and not gpu" $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(READY)

$(READY): pyproject.toml uv.lock | $(UV)
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Install one, or name it: make setup PYTHON=/path/to/python3.11"; exit 1; }
	$(UV) sync --frozen --extra all --python "$(PYTHON)" --compile-bytecode
	@touch $@

# uv, when it is not installed: from the package index into .tools, touching nothing else.
.tools/bin/uv:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Install one, or name it: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@echo "uv was not found; installing it into .tools"
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments (it lacks ensurepip), so uv cannot be installed into .tools."; \
		echo "Install that part of Python (Debian, Ubuntu: sudo apt install python3-venv), or install uv, and run make again."; \
		exit 1; }
	"$(PYTHON)" -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check uv

clean:
	rm -rf .venv .tools runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
