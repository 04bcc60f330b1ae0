# One line per target: make help. Needs Python 3.11 or newer and make; everything else goes into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
READY := $(VENV)/.ready
PACKAGES := stream learners embeddings infra
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header pyproject.toml
PYTEST := $(BIN)/python -m pytest
# One test after the other goes to whichever of two processes is free, or one file, whose fixtures
# are then made once; in the order given.
BY_TEST := -n 2 --dist loadgroup --no-loadscope-reorder
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder

# Compiled kernels are kept between runs; idle OpenMP threads sleep instead of spinning.
export NUMBA_CACHE_DIR ?= $(CURDIR)/build/numba
export OMP_WAIT_POLICY ?= passive
# Without bytecode each of the many processes that tests start would compile thousands of modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  %-14s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(READY) ## .venv with the locked packages and millrace itself

$(UV):
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; set PYTHON=/path/to/python" >&2; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(READY): requirements-dev.lock pyproject.toml | $(UV)
	VIRTUAL_ENV=$(VENV) $(UV) pip sync --quiet --require-hashes requirements-dev.lock
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.PHONY: lock
lock: | $(UV) ## write both lock files anew from pyproject.toml (UPGRADE=1: newest versions)
	$(COMPILE) $(if $(UPGRADE),--upgrade) --extra broker --output-file requirements.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) --extra broker --extra dev --output-file requirements-dev.lock

.PHONY: format
format: $(READY) ## write the format, mend what ruff can mend
	$(BIN)/ruff check --quiet --fix --exit-zero .
	$(BIN)/ruff format .

.PHONY: lint
lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.PHONY: types
types: $(READY) ## mypy --strict
	$(BIN)/mypy

.PHONY: layers
layers: $(READY) ## import-linter: layers and the pure core
	$(BIN)/lint-imports

.PHONY: unit
unit: $(READY) ## unit tests
	$(PYTEST) tests/unit

# Types on one core beside all that follows; first, what other clones know of types and loops.
BEGIN = mkdir -p build; $(BIN)/python -m tests.support.kept_types; echo "$(BIN)/mypy, beside:"; \
	$(BIN)/mypy > build/types.txt 2>&1 & types=$$!; \
	trap 'kill $$types 2> /dev/null || true' EXIT; \
	$(BIN)/python -m tests.support.compile_loops; \
	kill -0 $$types 2> /dev/null || { $(TYPED); }
TYPED = wait $$types || { cat build/types.txt; exit 1; }
END = cat build/types.txt; $(BIN)/python -m tests.support.kept_types keep; \
	$(BIN)/python -m tests.support.compile_loops keep

.PHONY: check
check: lint layers ## all that is fast: format, lint, types, layers, tidy, unit but slow ones, a quarter of property examples
	@$(BEGIN); $(PYTEST) $(BY_FILE) -m "not slow" \
		tests/property tests/test_tidy.py tests/test_docs.py tests/unit tests/golden; $(TYPED); $(END)

.PHONY: test
test: lint layers ## everything, with the real broker where Java and Maven are there
	@$(BEGIN); $(TYPED); MILLRACE_EXAMPLES=all $(PYTEST) $(BY_TEST) tests; $(END)

.PHONY: demo
demo: $(READY) ## broker, embedder and worker on the bundled log, to a table and a report
	$(BIN)/millrace demo

.PHONY: demo-items
demo-items: $(READY) ## a made-up catalogue: vectors, codes and neighbours of new items
	$(BIN)/millrace demo-items

.PHONY: bench
bench: $(READY) ## the benchmarks, one after the other
	@for b in tests/benchmarks/bench_*.py; do echo "== $$b"; \
		$(BIN)/python -m $$(echo $${b%.py} | tr / .); done

.PHONY: tune
tune: $(READY) ## search the ranker's settings on days before the evaluated ones (goes on where it stopped)
	$(BIN)/python -m tests.benchmarks.tune

.PHONY: methods
methods: $(READY) ## what each method is worth on the bundled slice, three seeds
	$(BIN)/python -m tests.benchmarks.quality_methods

.PHONY: movielens
movielens: $(READY) ## what text and pictures of films are worth, where the data is there (goes on where it stopped)
	$(BIN)/python -m tests.benchmarks.movielens_content

.PHONY: compose-check
compose-check: $(READY) ## docker-compose.yml: statically, and on a container engine where one starts
	$(BIN)/python -m tests.support.compose_check

.PHONY: clean
clean: ## remove caches and build products (keeps .venv)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find $(PACKAGES) tests -name __pycache__ -prune -exec rm -rf {} +
