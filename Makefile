# On a bare machine with Python 3.11+, pip and make, `make demo` and `make test` set everything up themselves, inside .venv.
# The locks carry hashes and no addresses. The core lock is what the product needs and half the download; `make demo` stops
# there, so that the first result comes soon. `make help` lists the targets.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
VENV_LLM := .venv-llm
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
EDITABLE = $(PIP) install --no-deps --no-build-isolation --editable .
TREES := src tests $(wildcard bench)

DEMO_PATH ?=
export DEMO_PATH
DEMO_ARGS ?=
BENCH_ARGS ?=
PYTEST_ARGS ?=
JOBS ?= 3
CHAOS ?=
ROOT_PLAN ?= quick
ROOT_TESTS ?= root and not slow
SCENARIO ?= actors
SEED ?= 0

# A Python will do if it is new enough and can get pip into a venv, by ensurepip or by a pip of its own.
PROBE := import sys, venv; from importlib.util import find_spec as has; \
  sys.exit(sys.version_info < (3, 11) or not (has("ensurepip") or has("pip")))
ifndef PYTHON
PYTHON = $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
  command -v $$p >/dev/null 2>&1 && $$p -c '$(PROBE)' 2>/dev/null && echo $$p && break; done)
endif

define NO_PYTHON
No usable Python here: Callboard needs 3.11 or later with the venv module and pip.
Install one (on Debian and Ubuntu: apt-get install python3 python3-venv python3-pip), or name it: make demo PYTHON=/path/to/python3
endef
export NO_PYTHON

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.core ## run the demonstration (DEMO_PATH=folder runs it on your own files)
	@$(BIN)/callboard demo $${DEMO_PATH:+"$$DEMO_PATH"}

.PHONY: demo-takeover
demo-takeover: $(VENV)/.core ## kill the worker of a long turn and watch another finish it (DEMO_PATH=folder, DEMO_ARGS="--minutes 10")
	@$(BIN)/callboard demo takeover $${DEMO_PATH:+"$$DEMO_PATH"} $(DEMO_ARGS)

.PHONY: test
test: $(VENV)/.dev ## all tests but the slow ones and those that need root (PYTEST_ARGS=… is handed on)
	@$(BIN)/python -m pytest -q -rs -n $(JOBS) -m "not slow and not root" $(PYTEST_ARGS)

.PHONY: test-root
test-root: $(VENV)/.dev ## power cuts, full disks and more, as root, one after the other (ROOT_TESTS=root with partitions too, ROOT_PLAN=large)
	@ROOT_PLAN=$(ROOT_PLAN) $(BIN)/python -m pytest -q -rs -m "$(ROOT_TESTS)" tests/root $(PYTEST_ARGS)

.PHONY: test-all
test-all: $(VENV)/.dev ## every test this machine can run
	@$(BIN)/python -m pytest -q -rs -n $(JOBS) -m "not root" $(PYTEST_ARGS)
	@$(MAKE) --no-print-directory test-llm
	@$(MAKE) --no-print-directory test-root ROOT_TESTS=root

.PHONY: test-llm
test-llm: $(VENV_LLM)/.made ## the tests of models through litellm, in an environment of its own (250 MB)
	@PYTHONPATH=src $(VENV_LLM)/bin/python -m pytest -q -rs -k litellm $(LLM_TESTS) $(PYTEST_ARGS)
LLM_TESTS := tests/contract/test_model.py tests/unit/test_lazy_models.py tests/integration/test_litellm_model.py

.PHONY: chaos
chaos: $(VENV)/.dev ## kill workers and servers under 5,000 tasks and account for each (CHAOS="--tasks 500 --seed 3")
	@$(BIN)/python -m tests.chaos.ledger $(CHAOS)

.PHONY: chaos-turns
chaos-turns: $(VENV)/.dev ## kill hosts and servers under 1,000 long turns (CHAOS="--turns 100 --servers 3 --server-freezes 2")
	@$(BIN)/python -m tests.chaos.turn_ledger $(CHAOS)

.PHONY: chaos-upgrade
chaos-upgrade: $(VENV)/.dev ## replace the workers of the version before under 200 open turns (CHAOS="--back")
	@$(BIN)/python -m tests.chaos.upgrade $(CHAOS)

.PHONY: chaos-takeover
chaos-takeover: $(VENV)/.dev ## kill the host of a turn 200 times and time its heirs (CHAOS="--kills 20")
	@$(BIN)/python -m tests.chaos.takeover $(CHAOS)

.PHONY: chaos-registry
chaos-registry: $(VENV)/.dev ## kill the registry's leader 20 times under callers that never stop (CHAOS="--kills 5")
	@$(BIN)/python -m tests.chaos.registry_kills $(CHAOS)

.PHONY: chaos-post
chaos-post: $(VENV)/.dev ## kill the host that makes mail of the post 20 times in mid-flood (CHAOS="--kills 5")
	@$(BIN)/python -m tests.chaos.post_kills $(CHAOS)

.PHONY: chaos-cluster
chaos-cluster: $(VENV)/.dev ## every fault of three servers under tasks and turns (CHAOS='--fault "leader killed"')
	@$(BIN)/python -m tests.chaos.cluster_ledger $(CHAOS)

.PHONY: simulate
simulate: $(VENV)/.dev ## replay one simulated run and print its history (SCENARIO=actors SEED=7)
	@$(BIN)/python -m tests.simulation.replay --scenario $(SCENARIO) --seed $(SEED)

.PHONY: check
check: $(VENV)/.dev ## format, lint, types, import contracts, layout
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy $(TREES)
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m pytest -q tests/unit/test_layout.py

.PHONY: soak
soak: $(VENV)/.dev ## a million tasks, and turns beside them: does anything grow? (SOAK="--tasks 200000 --minutes 10")
	@$(BIN)/python -m bench.soak $(SOAK)

.PHONY: bench
bench: $(VENV)/.dev ## run the benchmarks (BENCH_ARGS=--quick, or --rows a,b)
	@$(BIN)/python -m bench $(BENCH_ARGS)

.PHONY: lock
lock: $(VENV)/.dev ## resolve the dependencies anew (UPGRADE=--upgrade takes newer versions)
	@$(PIP) install uv
	@$(LOCK) --group dev --group build --output-file requirements.lock pyproject.toml >/dev/null
	@$(LOCK) --group build --constraints requirements.lock --output-file requirements-core.lock pyproject.toml >/dev/null
	@$(LOCK) --extra security --extra otel --extra nkeys --constraints requirements.lock --output-file requirements-image.lock pyproject.toml >/dev/null
	@$(LOCK) --group image --constraints requirements.lock --output-file requirements-image-build.lock >/dev/null
	@$(LOCK) --group audit --constraints requirements.lock --output-file requirements-audit.lock >/dev/null
	@$(LOCK) --extra llm --group dev --group build --constraints requirements.lock --output-file requirements-llm.lock pyproject.toml >/dev/null
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header $(UPGRADE)

.PHONY: ci
ci: check test ## what CI runs on every change, but for the image and the audit
	@$(MAKE) --no-print-directory bench BENCH_ARGS=--quick

.PHONY: audit
audit: $(VENV)/.dev ## look up known faults of what the locks pin (asks the advisory service)
	@$(PIP) install --require-hashes --no-deps -r requirements-audit.lock
	@for lock in requirements.lock requirements-image.lock requirements-llm.lock; do \
	  $(BIN)/pip-audit --require-hashes --disable-pip --requirement $$lock || exit 1; done

.PHONY: dist
dist: $(VENV)/.dev ## build wheel, source archive and bill of materials into dist/
	@rm -rf dist
	@$(BIN)/hatchling build
	@$(BIN)/callboard sbom --lock requirements-image.lock > dist/callboard.cdx.json

.PHONY: clean
clean: ## remove .venv and everything the tools left behind
	rm -rf $(VENV) $(VENV_LLM) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Where ensurepip is missing (Debian without python3-venv) the Python's own pip can still fill a venv made without one.
# A .venv that does not run, because the tree or its Python has moved, is made again.
$(VENV)/.made:
	@[ -n "$(PYTHON)" ] || { echo "$$NO_PYTHON" >&2; exit 1; }
	@$(PYTHON) -c '$(PROBE)' || { echo "$$NO_PYTHON" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version). This happens once." >&2
	@$(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --disable-pip-version-check --quiet --python $(BIN)/python install pip; }
	@$(BIN)/python -m pip --version >/dev/null || { echo "$$NO_PYTHON" >&2; exit 1; }
	@touch $@

$(VENV)/.core: requirements-core.lock pyproject.toml $(VENV)/.made
	@$(PIP) install --require-hashes -r requirements-core.lock
	@$(EDITABLE)
	@touch $@

$(VENV)/.dev: requirements.lock pyproject.toml $(VENV)/.made
	@$(PIP) install --require-hashes -r requirements.lock
	@$(EDITABLE)
	@touch $(VENV)/.core $@

$(VENV_LLM)/.made: requirements-llm.lock $(VENV)/.made
	@echo "Setting up $(VENV_LLM). This happens once." >&2
	@$(BIN)/python -m venv --clear --without-pip $(VENV_LLM)
	@$(PIP) --python $(VENV_LLM)/bin/python install --require-hashes -r requirements-llm.lock
	@touch $@

ifneq ($(wildcard $(VENV)/.made),)
ifneq ($(shell $(BIN)/python -c 'import sys, pip; print(sys.prefix)' 2>/dev/null),$(CURDIR)/$(VENV))
.PHONY: $(VENV)/.made
endif
endif
