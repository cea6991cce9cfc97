# make demo    install what is needed, then segment the nuclei of a real microscopy picture
# make test    install what is needed, then run the tests
# make test-quick   only the quick unit tests: what to run while you work
# make check   lint, format, types, and the documentation's links
# make docs    build the documentation as a site in site/: python3 -m http.server --directory site shows it
# make format  rewrite the code in the agreed format
# make bench   measure speed and memory, some minutes per benchmark: BENCH="inference decode" chooses, QUICK= takes longer
# make bench-compare   show ratios to the results in benchmarks/results instead
# make clean   remove the environment and everything generated
#
# Needs nothing but python3 (3.11 or later), make and git. VENV=folder and PYTHON=interpreter choose others.

VENV ?= .venv
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo $$python; break; fi; done)
# The picture of the demo; by default the fluorescence micrograph that mahotas carries in its wheel.
PICTURE ?= $(shell $(VENV)/bin/python -c 'from mahotas import demos; print(demos.image_path("nuclear.png"))')
DEMO_OUT ?= predictions/demo

STAMP := $(VENV)/.installed
BIN := $(VENV)/bin

BENCH ?= decode data evaluate attention inference train
QUICK ?= --quick
# Tests that wait leave room for others: half as many processes again as cores, at most 8.
WORKERS := import os; cores = len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))(0)); print(min(8, cores + cores // 2))

# Not with --quiet, which lets warnings pass. The variable silences an advertisement that the theme prints.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: install demo test test-quick check docs format bench bench-compare clean
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later with venv found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time this takes some minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1" # the first that knows groups
	@$(BIN)/python -m pip install --quiet -e ".[train,export,openvino,serve,microscopy,demo]" --group dev
	@# Without what it depends on: OpenCV's build with windows needs libraries that servers lack.
	@$(BIN)/python -m pip install --quiet --no-deps "trackers>=2.6"
	@touch $@

demo: $(STAMP)
	@$(BIN)/sotr predict "$(PICTURE)" --model nuclei --out "$(DEMO_OUT)"
	@echo "overlay: $$(ls "$(DEMO_OUT)"/*.overlay.png)"

# Processes share the cores better than threads do, whose small tensors they wait for.
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $$($(BIN)/python -c '$(WORKERS)') --dist loadfile $(ARGS)

test-quick: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $$($(BIN)/python -c '$(WORKERS)') --dist loadfile -m "quick and not slow and not gpu" $(ARGS)

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(MKDOCS)

docs: $(STAMP)
	@$(MKDOCS)

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP)
	@for which in $(BENCH); do $(BIN)/python -m benchmarks $$which $(QUICK) || exit; done

bench-compare: $(STAMP)
	@for which in $(BENCH); do $(BIN)/python -m benchmarks $$which $(QUICK) --compare-only || exit; done

clean:
	rm -rf $(VENV) build dist site predictions .mypy_cache .pytest_cache .ruff_cache .hypothesis
