# Two commands for a newcomer: `make demo` to hear the codec, `make test` to check it.
# Everything happens in .venv, which is made once and again only when the requirements change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := setup.cfg pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test conformance lint format clean
.DELETE_ON_ERROR:

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/demo.stamp  ## decode the sample that comes along, or: make demo AUDIO=my.wav
	@$(BIN)/python hub_cards/demo.py $(if $(AUDIO),"$(AUDIO)")

test: lint  ## check the style and run every test
	$(BIN)/python -m pytest

conformance: $(VENV)/test.stamp  ## run the common tests of Transformers, fetched for the installed version
	$(BIN)/python -m pytest tests/conformance

lint: $(VENV)/test.stamp  ## check the style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/test.stamp  ## rewrite the files in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove the environment, caches and demo output (training runs stay)
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build dist demo_out *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp's name is the extra of setup.cfg that it stands for.
$(VENV)/%.stamp: $(REQUIREMENTS) | $(BIN)/python
	@echo "Installing the package and what '$*' needs into $(VENV): a few minutes, the first time"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12 …")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
