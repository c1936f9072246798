# Two commands do everything on a fresh machine with Python 3.11 and make:
#   make demo   installs medkd into .venv and runs the whole pipeline on synthetic slides
#   make test   installs the test extras too, then lint, types and tests

PYTHON ?= python3.11
PYTHON := $(shell command -v $(PYTHON) || command -v python3)
BIN := .venv/bin
DEMO_OUT ?= medkd-demo

.PHONY: demo test test-slow lint types install install-test clean

demo: install
	$(BIN)/medkd demo --out $(DEMO_OUT)

# Tests run on every core, each with one thread, and the tests of a file on the same one.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

test: install-test lint types
	$(PYTEST)

test-slow: install-test
	$(PYTEST) -m slow

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-test
	$(BIN)/mypy

install: .venv/installed
install-test: .venv/installed-test

# The constraints make an install next year the install of today.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medkd needs Python 3.11 or later; name one with make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv medkd-demo
