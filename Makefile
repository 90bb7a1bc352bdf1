# Two commands do everything, set-up included:  make b3_20   make test
# A step runs again only if its stamp is older than what it depends on, so a set-up tree pays nothing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help b3_20 test test-all lint setup clean

VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
RUN := $(VENV)/.ready-run
TEST := $(VENV)/.ready-test
ALL := $(VENV)/.ready-all
ARGS ?=
PYTEST_ARGS ?=
# Two processes; the tests of a file share its fixtures, so they stay together.
TWO := -n 2 --dist loadfile

help:
	@echo "make b3_20     align the JAX oracle with gfx942 machine code, token by token (ARGS='--prompt=p4_sys')"
	@echo "make test      lint and the test suite (PYTEST_ARGS='-k judge')"
	@echo "make test-all  the same with the slow tests"
	@echo "make setup     only the set-up: clang with gfx942, the virtual environment ($(VENV))"
	@echo "make clean     removes build/ and artifacts/; the virtual environment stays"

b3_20: $(RUN)
	@$(PY) -m experiments.b3_20 $(ARGS)

test: lint
	@$(PY) -m pytest $(TWO) -m "not slow" $(PYTEST_ARGS)

test-all: lint $(ALL)
	@$(PY) -m pytest $(TWO) $(PYTEST_ARGS)

lint: $(TEST)
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

setup: $(RUN)

$(RUN): pyproject.toml .ci/setup
	@PYTHON="$(PYTHON)" .ci/setup toolchain
	@PYTHON="$(PYTHON)" .ci/setup venv "$(VENV)" .
	@touch $@

$(TEST): $(RUN)
	@.ci/setup browser
	@PYTHON="$(PYTHON)" .ci/setup venv "$(VENV)" ".[test]"
	@touch $@

$(ALL): $(TEST)
	@PYTHON="$(PYTHON)" .ci/setup venv "$(VENV)" ".[test,ray]"
	@touch $@

clean:
	rm -rf build artifacts
