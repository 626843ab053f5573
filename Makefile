# Each target makes .venv and installs into it first, once: again only when what to install changes.
#   make demo     the main job on real images, from a trained network to a table
#   make test     all that has to pass: lint, format, types, tests
#   make clean    remove .venv, caches and build products; data/ and runs/ stay
# Another interpreter (3.11 or later): make PYTHON=python3.12 test, after make clean.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: help demo test clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(INSTALLED)
	@$(BIN)/ftwt demo

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into .venv, once; this takes a minute or two."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
