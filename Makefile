# Two commands set everything up on a bare machine: `make demo` and `make test`.
# They need Python 3.11 or newer, make and bash; everything else goes into .venv.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
# Your photograph, and the radio channel's signal-to-noise ratio in dB.
IMAGE ?=
SNR ?= 4
# `make figures` draws rows of pictures only with the folder of what was sent.
IMAGES ?=
BUNDLES ?= out
# More options for pytest, e.g. PYTEST="-m 'not slow' -k manifest".
PYTEST ?=
# Files are handed out as tests/conftest.py orders them.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install
# A stamp is named after the content of what it installed, so a changed pin installs again.
DEMO_FILES := pyproject.toml .requirements/device.txt .requirements/demo.txt
TEST_FILES := $(DEMO_FILES) .requirements/test.txt .requirements/tensorrt.txt
DEMO_READY := .venv/ready-demo-$(shell cat $(DEMO_FILES) | cksum | cut -d' ' -f1)
TEST_READY := .venv/ready-test-$(shell cat $(TEST_FILES) | cksum | cut -d' ' -f1)
PHOTOS := .venv/photos
BUNDLE := out/diffjscc.jscc

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(DEMO_READY) $(PHOTOS) $(BUNDLE) ## Send photographs over a simulated radio link [IMAGE=photo.jpg] [SNR=4]
	@$(BIN)/jscc simulate $(BUNDLE) $(if $(IMAGE),"$(IMAGE)",$(PHOTOS)/*.jpg) \
	  --snr $(SNR) --output out/demo --force
	@echo "Original, codec alone and received, side by side: out/demo/*-compare.png"

.PHONY: test
test: lint ## Check style, types and layers, then run the tests [PYTEST="-k name"]
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m "not exhaustive" $(PYTEST)

.PHONY: test-all
test-all: lint ## The same, with exports that a quicker test makes alike
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) $(PYTEST)

.PHONY: lint
lint: $(TEST_READY) ## Check style, types and layers only
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/vermin --quiet --no-tips --violations --target=3.10- runtime kernels

.PHONY: format
format: $(TEST_READY) ## Rewrite the source in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: figures
figures: $(TEST_READY) ## Make the README's tables and figures again from benchmarks/results [IMAGES=DIR]
	@$(BIN)/python -m jscc.benchmarks.readme_tables --figures \
	  $(if $(IMAGES),--images "$(IMAGES)" --bundles "$(BUNDLES)")

.PHONY: clean
clean: ## Remove what the other commands made, .venv included
	rm -rf .venv out build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: got $$($(PYTHON) --version), expected Python 3.11 or newer." \
	    "Name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv .venv

$(DEMO_READY): | $(BIN)/python
	@echo "Installing into .venv (the first time takes minutes: torch is large) …"
	@$(PIP) -r .requirements/demo.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(TEST_READY): $(DEMO_READY)
	@$(PIP) -r .requirements/test.txt
	@$(PIP) -r .requirements/tensorrt.txt || \
	  echo "TensorRT for RTX is not to be had here: the tests that need it are skipped."
	@touch $@

# Two photographs that scikit-learn carries; nothing else of it is used.
$(PHOTOS): | $(BIN)/python
	@$(PIP) --no-deps --no-compile --target $@.tmp -r .requirements/photos.txt
	@mkdir $@
	@cp $@.tmp/sklearn/datasets/images/*.jpg $@.tmp/sklearn/datasets/images/README.txt $@
	@rm -r $@.tmp

$(BUNDLE): $(wildcard export/reference/diffjscc/*) | $(DEMO_READY)
	@mkdir -p out
	@$(BIN)/jscc export --model diffjscc --output $@ --force
