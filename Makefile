# Everything a contributor or CI runs. `make` alone prints the targets.
#   make test PYTEST_ARGS="-k allocator"       VENV=... another environment       PYTHON=... another interpreter
#   PIP_ARGS="--find-links DIR" for a torch wheel of your own

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 2

VENV_PYTHON := $(VENV)/bin/python
PIP_INSTALL := $(VENV_PYTHON) -m pip install -qq --disable-pip-version-check $(PIP_ARGS)

# One OpenMP thread per pytest worker: two workers with a thread per core each would fight for the cores. Tests that ask
# for two threads sleep at barriers, for the same reason.
PYTEST := OMP_WAIT_POLICY=passive OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(VENV_PYTHON) -m pytest -n $(PYTEST_WORKERS)

# A GPU host may have no network and no environment of ours: then its own interpreter runs the tests.
GPU_PYTHON = $(if $(wildcard $(VENV_PYTHON)),$(VENV_PYTHON),$(PYTHON))

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-gpu check bench format clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.stamp-package ## install the package and let the bundled model speak
	$(VENV)/bin/kilotron generate -p "Once upon a time"

test: $(VENV)/.stamp-dev ## the default suite: no GPU needed, minutes on two cores
	$(PYTEST) $(PYTEST_ARGS)

test-slow: $(VENV)/.stamp-clients ## the tests marked slow, and those with clients of others
	$(PYTEST) -m "slow and not gpu" $(PYTEST_ARGS)

test-gpu: ## the tests marked gpu; needs torch and pytest, no network, no installation
	@$(GPU_PYTHON) -c 'import torch; n = torch.cuda.device_count(); bar = "*" * 72; \
	  print(f"GPU: {torch.cuda.get_device_name(0)}, {n} device(s), torch {torch.__version__}" if n else \
	  f"{bar}\n***  NO GPU FOUND: every test below is SKIPPED and proves nothing.  ***\n{bar}")'
	PYTHONPATH="src$${PYTHONPATH:+:$$PYTHONPATH}" $(GPU_PYTHON) -m pytest -m gpu tests/gpu $(PYTEST_ARGS)

check: $(VENV)/.stamp-dev ## formatting, lint, types, shape gate, spelling
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV_PYTHON) -m pytest -q tests/test_architecture.py tests/test_shape_gate.py
	$(VENV)/bin/codespell

format: $(VENV)/.stamp-dev ## rewrite the sources in the house format
	$(VENV)/bin/ruff check --fix-only --quiet .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.stamp-dev ## every benchmarks/bench_*.py, one after the other
	@set -e; found=; for file in benchmarks/bench_*.py; do \
	  [ -e "$$file" ] || continue; found=1; echo "== $$file"; $(VENV_PYTHON) "$$file" $(BENCH_ARGS); done; \
	  [ -n "$$found" ] || echo "There are no benchmarks yet."

clean: ## remove the environment, builds and caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# --- the environment: one stamp per step, so that a second call installs nothing ---

$(VENV)/.stamp-pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kilotron needs Python 3.11 or later, and $(PYTHON) is older or absent. Try: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make a virtual environment. On Debian: apt-get install python3-venv"; exit 1; }
	@$(PIP_INSTALL) "pip>=25.1"
	@touch $@

$(VENV)/.stamp-package: pyproject.toml | $(VENV)/.stamp-pip
	@echo "Installing kilotron and its dependencies into $(VENV): once, and it takes a minute or more ..."
	@$(PIP_INSTALL) -e .
	@touch $@

# One invocation for package and tools: whatever a tool asks for, it is held to the torch that the package allows.
$(VENV)/.stamp-dev: pyproject.toml | $(VENV)/.stamp-pip
	@echo "Installing kilotron and the developer tools into $(VENV): once, and it takes a minute or more ..."
	@$(PIP_INSTALL) -e ".[server,tokenizers-extra]" --group dev
	@touch $@ $(VENV)/.stamp-package

# What is installed already, torch above all, stays as it is.
$(VENV)/.stamp-clients: pyproject.toml $(VENV)/.stamp-dev
	@echo "Installing lm-eval and schemathesis into $(VENV): once ..."
	@$(PIP_INSTALL) --group clients
	@touch $@
