# Every target is a thin line over the tool it names. Settings: make book JOBS=1, make test PYTHON=python3.12
PYTHON ?= python3
VENV   ?= .venv
PRESET ?= digits
JOBS   ?= 2

BIN       = $(VENV)/bin
INSTALLED = $(VENV)/.installed
THREADS   = $(shell $(PYTHON) -c 'import os; print(max(1, os.cpu_count() // $(JOBS)))')
SYNC      = $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
CHAPTERS  = $(sort $(wildcard book/[0-9]*.py))
FIRST     = $(filter book/02_% book/15_% book/17_% book/18_%,$(CHAPTERS))# which train teachers for others
NOTEBOOKS = $(patsubst %.py,%.ipynb,$(FIRST) $(filter-out $(FIRST),$(CHAPTERS)))

.PHONY: help book test test-code test-chapters sweep lab site lint clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

book: $(INSTALLED)  ## run every chapter of PRESET, JOBS at a time, then build the site
	$(BIN)/dkdm run --preset $(PRESET) --jobs $(JOBS)
	@$(MAKE) --no-print-directory site

test: lint  ## run the linters, the tests, and every chapter once more, side by side
	@$(MAKE) --no-print-directory --jobs 2 $(SYNC) test-code test-chapters

test-code: $(INSTALLED)
	OMP_NUM_THREADS=$(THREADS) nice $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile tests

test-chapters: $(INSTALLED)
	@echo $(NOTEBOOKS) | tr ' ' '\n' | OMP_NUM_THREADS=$(THREADS) \
	  xargs -P $(JOBS) -I {} $(BIN)/pytest --no-header --nbval-lax --nbval-cell-timeout=3600 {}

sweep: $(INSTALLED)  ## make every run of PRESET that its tables miss, JOBS at a time
	$(BIN)/snakemake --snakefile workflow/Snakefile --cores $(JOBS) --nolock --rerun-incomplete \
	  --rerun-triggers mtime --keep-going --config preset=$(PRESET) $(SWEEP)

lab: $(INSTALLED)  ## open JupyterLab on the book; untrusted, its sliders would not move before a run
	$(BIN)/jupyter-trust $(NOTEBOOKS)
	$(BIN)/jupyter-lab --LabApp.default_url=/lab/tree/book

site: $(INSTALLED)  ## build the site from the executed chapters; any warning is an error
	$(BIN)/jupyter-book build book --config _config.yml --path-output . --all -W -n --keep-going
	@echo "The site lies at $(CURDIR)/_build/html/index.html"

lint: $(INSTALLED)  ## check the code and its format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove what can be built again in minutes; .venv and data_cache stay
	rm -rf _build .pytest_cache .ruff_cache *.egg-info

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "DKDM Lab needs Python 3.11 or newer; $(PYTHON) is %s. Try: make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@
