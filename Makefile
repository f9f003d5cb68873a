# Every target is a thin line over the tool it names. Settings: make book JOBS=1, make test PYTHON=python3.12,
# make book LOCKED=1 with one set of versions that work together, those of requirements.lock
PYTHON ?= python3
VENV   ?= .venv
PRESET ?= digits
JOBS   ?= 2

BIN       = $(VENV)/bin
INSTALLED = $(VENV)/.installed
THREADS   = $(shell $(PYTHON) -c 'import os; print(max(1, os.cpu_count() // $(JOBS)))')
CHAPTERS  = $(sort $(wildcard book/[0-9]*.py))
NOTEBOOKS = $(CHAPTERS:.py=.ipynb)
# Tests that train, wait for other processes, or read chapters: minutes, and not for every change.
SLOW      = batch benchmarks budget chapters distill evaluation guidance latent_runs models packing pipelines \
            ranks runs site studies survival toy vae widgets window workflow
QUICK     = $(filter-out $(SLOW:%=tests/test_%.py),$(sort $(wildcard tests/test_*.py)))

.PHONY: help book test check sweep lab site lint clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

book: $(INSTALLED)  ## run every chapter of PRESET, JOBS at a time, then build the site
	$(BIN)/dkdm run --preset $(PRESET) --jobs $(JOBS)
	@$(MAKE) --no-print-directory site

# One queue of files for all: the chapters, and the tests, which are short.
test: lint  ## run the linters, every chapter once more, and the tests, JOBS at a time
	OMP_NUM_THREADS=$(THREADS) $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	  --nbval-lax --nbval-cell-timeout=3600 $(NOTEBOOKS) tests

check: lint  ## run the linters and the quick tests, for while you work: two minutes
	OMP_NUM_THREADS=$(THREADS) $(BIN)/pytest -n $(JOBS) --dist loadfile -q -m 'not slow' $(QUICK)

sweep: $(INSTALLED)  ## make every run of PRESET that its tables miss, JOBS at a time
	$(BIN)/snakemake --snakefile workflow/Snakefile --cores $(JOBS) --nolock --rerun-incomplete \
	  --rerun-triggers mtime --keep-going --config preset=$(PRESET) $(SWEEP)

lab: $(INSTALLED)  ## open JupyterLab on the book; untrusted, its sliders would not move before a run
	$(BIN)/jupyter-trust $(NOTEBOOKS)
	$(BIN)/jupyter-lab --LabApp.default_url=/lab/tree/book

site: $(INSTALLED)  ## build the site from the executed chapters; any warning is an error
	$(BIN)/jupyter-book build book --config _config.yml --path-output . --all -W -n --keep-going
	@echo "The site lies at $(CURDIR)/_build/html/index.html"

lint: $(INSTALLED)  ## check the code, its format, which room imports which, and the method's types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy

clean:  ## remove what can be built again in minutes; .venv and data_cache stay
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache *.egg-info

$(INSTALLED): pyproject.toml $(if $(LOCKED),requirements.lock)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "DKDM Lab needs Python 3.11 or newer; $(PYTHON) is %s. Try: make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile $(if $(LOCKED),--constraint requirements.lock) --editable '.[dev]'
	@$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true  # as pip does, but on all cores
	@touch $@
