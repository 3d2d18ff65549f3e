# make help lists the commands. Nothing has to be done first: each one makes .venv and installs what it needs.
.DEFAULT_GOAL := help
.PHONY: help demo test quick dev export readme docs lab wheel clean

# another environment that is active would be mixed into ours
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

VENV ?= .venv
BIN := $(VENV)/bin
# the first of these that is Python 3.11 or newer and can make a virtual environment
FITS := -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
PYTHON ?= $(shell for p in python3 python python3.13 python3.12 python3.11 python3.14; do $$p $(FITS) && { echo $$p; break; }; done)
MODEL ?= tiny
DATASET ?= python-docs
CYCLES ?= 3

help: ## show this list
	@echo "make COMMAND, where COMMAND is one of"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.package ## install, then run a plasticity cycle on the embedded model (MODEL, DATASET and CYCLES change it)
	$(BIN)/plasticity_run --model_name $(MODEL) --dataset $(DATASET) --max_cycles $(CYCLES)

test: $(VENV)/.dev ## install the development part, then run all tests
	$(BIN)/python -m pytest $(ARGS)

quick: $(VENV)/.dev ## run the tests without the cells marked slow
	$(BIN)/python -m pytest --quick $(ARGS)

dev: $(VENV)/.dev ## install the package in place, the development part and the git hooks

export: $(VENV)/.dev ## write plasticity_nb/ from the notebooks, and clean the notebooks
	$(BIN)/nbdev_export
	$(BIN)/python tools/clean.py

readme: $(VENV)/.dev ## write README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

docs: $(VENV)/.dev ## build the documentation site into _docs (with Quarto if it is installed, else with smalldocs)
	$(BIN)/python tools/docs.py

lab: $(VENV)/.dev ## open JupyterLab on the tutorials
	JUPYTER_CONFIG_PATH=$(CURDIR)/tools/jupyter PLOTLY_RENDERER=plotly_mimetype \
		$(BIN)/jupyter lab --notebook-dir=nbs --LabApp.default_url=/lab/tree/tutorials $(if $(filter 0,$(shell id -u)),--allow-root)

wheel: $(VENV)/.dev ## build the wheel into dist
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean: ## remove what the other commands made, the virtual environment too
	rm -rf $(VENV) _docs _proc build dist output *.egg-info

# Each part is installed once, and again when one of these files changes. The mark is set last: an installation
# that was broken off is taken up again.
FACTS := settings.ini setup.py constraints.txt
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

$(VENV)/.package: $(FACTS) | $(VENV)/.python
	@echo "Installing plasticity_nb into $(VENV). torch is large: the first time takes some minutes."
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(FACTS) | $(VENV)/.python
	@echo "Installing plasticity_nb and its development part into $(VENV). torch is large: the first time takes some minutes."
	$(PIP) --editable '.[dev]'
	$(BIN)/python tools/hooks.py
	@touch $(VENV)/.package $@

$(VENV)/.python:
	@python="$(PYTHON)"; $${python:-false} $(FITS) || { \
		echo "plasticity_nb needs Python 3.11 or newer with its venv module, and $${python:-no python3} does not fit:" \
		"install one (on Debian: apt-get install python3 python3-venv) or name it with make PYTHON=/path/to/python3." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
