# PYTHON: the interpreter that makes the virtual environment. VENV: where. PIP_ARGS: more for pip.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/mdssd-installed
SOURCES := pyproject.toml setup.py constraints.txt CMakeLists.txt $(shell find cmake csrc -type f)

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-checkpoint test lint format

help:
	@echo "make demo    install into $(VENV), detect on sample scenes"
	@echo "make test    install, run the tests"
	@echo "make lint    install, run ruff and mypy"
	@echo "make format  install, let ruff rewrite the Python files"
	@echo "make venv    install only"
	@echo "make demo-checkpoint  train the demo's network again (36 minutes on one core)"

venv: $(STAMP)

$(STAMP): $(SOURCES)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "mdssd needs Python 3.10 or later as '$(PYTHON)'; name one: make PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c "import ensurepip, venv" || \
		{ echo "$(PYTHON) cannot make a virtual environment; Debian, Ubuntu: apt install python3-venv" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) --constraint constraints.txt --editable '.[test,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python demo/demo.py

demo-checkpoint: $(STAMP)
	$(BIN)/python demo/train.py

test: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
