# Two commands for a newcomer: `make demo` to hear the codec, `make test` to check it.
# Everything runs in .venv, which is made once, and again when the requirements change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := setup.cfg pyproject.toml constraints.txt
# Processes that run tests; by default one per core.
JOBS ?= auto

.DEFAULT_GOAL := help
include hub_cards/cards/release.mk
.PHONY: help demo space web test quick types conformance api notebook fuzz lower-bounds lint format clean
.DELETE_ON_ERROR:

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/demo.stamp  ## encode and decode a recording, or yours: make demo AUDIO=my.wav
	@$(BIN)/python hub_cards/demo.py $(if $(AUDIO),"$(AUDIO)")

space: $(VENV)/space.stamp  ## serve the page of the Space, at http://127.0.0.1:7860
	$(BIN)/python hub_cards/space/app.py

web: $(VENV)/export.stamp  ## build the page that puts a voice in a link, into hub_cards/web/dist; needs npm
	$(BIN)/python hub_cards/web/build.py

test: lint types  ## check style and types, and run every test, on all cores
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --durations 10

quick: $(VENV)/test.stamp  ## run the fast tests, which need no browser and no cluster
	$(BIN)/python -m pytest -m "not (slow or browser or ray)" --numprocesses $(JOBS) --dist loadfile

types: $(VENV)/test.stamp  ## check the types of the package and the trainer
	$(BIN)/mypy

conformance: $(VENV)/test.stamp  ## run the common tests of Transformers, fetched for the installed version
	$(BIN)/python -m pytest tests/conformance

api: $(VENV)/demo.stamp  ## write docs/api.md from the docstrings
	$(BIN)/python docs/make_api.py

notebook: $(VENV)/test.stamp  ## run docs/example.ipynb, and store its outputs
	$(BIN)/python docs/make_notebook.py

fuzz: $(VENV)/test.stamp  ## read damaged files for two minutes, or: make fuzz SECONDS=3600 SEED=1
	$(BIN)/python tests/fuzz/run.py --seconds $(or $(SECONDS),120) --seed $(or $(SEED),0)

lower-bounds:  ## run the core tests with the oldest versions that setup.cfg allows, or: make lower-bounds TORCH=2.13.0
	$(PYTHON) tests/lower_bounds/run.py $(if $(EXTRAS),--extras $(EXTRAS)) $(if $(TORCH),--torch $(TORCH))

lint: $(VENV)/test.stamp  ## check the style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/test.stamp  ## rewrite the files in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove the environment, caches and demo output (training runs stay)
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build dist hub_cards/web/dist demo_out *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp's name is the extra of setup.cfg that it stands for.
$(VENV)/%.stamp: $(REQUIREMENTS) | $(BIN)/python
	@echo "Installing the package and what '$*' needs into $(VENV): a few minutes, the first time"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12 …")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
