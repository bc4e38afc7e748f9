# Each target says what it does with `make help`; what a target needs it makes or installs first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo up test check format crash-test cluster-test cluster-demo bench lock schema clean nix sshd venv

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.ready nix ## Start FC Operator on config/demo, show its builds, and check every outcome
	@$(BIN)/fc demo $(ARGS)

up: $(VENV)/.ready nix ## Start FC Operator and stay up: make up ARGS="--config <directory or git URL>"
	@$(BIN)/fc up $(ARGS)

test: $(VENV)/.ready-dev nix sshd check ## All checks and tests that end within ten minutes
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not cluster" $(ARGS)

crash-test: $(VENV)/.ready-dev nix sshd ## The long suites: crash points, restarts, large graphs
	$(BIN)/pytest -n 2 --dist worksteal -m "slow and not cluster" $(ARGS)

cluster-test: $(VENV)/.ready-dev ## The suite on a real Kubernetes that is built, brought up and taken down here (as root)
	@$(BIN)/python -m tests.cluster --instance test test $(ARGS)

cluster-demo: $(VENV)/.ready-dev ## A real Kubernetes that stays up, with our image and kinds in it, for kubectl (as root)
	@$(BIN)/python -m tests.cluster --instance demo demo $(ARGS)

check: $(VENV)/.ready-dev ## Lint, types, import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.ready-dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: bench-ingest bench-reconcile bench-wake bench-page bench-footprint bench-cache ## All benches that need no cluster

bench-%: $(VENV)/.ready-dev nix ## One bench: ingest, reconcile, wake, page, footprint, cache, pods (ARGS= passes its flags)
	$(BIN)/python benchmarks/$*.py $(ARGS)

schema: $(VENV)/.ready-dev ## Write anew what follows from migrations, settings, kinds and the chart
	$(BIN)/python -m fc_operator.store.picture
	$(BIN)/python -m tests.house.example_settings
	$(BIN)/python -m tests.house.chart_documents
	$(BIN)/fc schema > config/demo/manifest.schema.json
	$(BIN)/python -m tests.house.chart_snapshots

lock: ## Write the requirements files anew, with hashes and without any index address
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet pip-tools
	for extra in "requirements.lock" "requirements-dev.lock --extra dev --extra bench"; do \
	  set -- $$extra; out=$$1; shift; \
	  $(VENV)-lock/bin/pip-compile --quiet --strip-extras --generate-hashes --allow-unsafe --no-header \
	    --no-emit-index-url --no-emit-trusted-host --annotation-style=line --output-file $$out $$@ pyproject.toml; done
	rm -rf $(VENV)-lock

clean: ## Remove the virtual environment and caches; state stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis *.egg-info

nix: ## Install Nix by apt where it is missing (as root or with sudo)
	@command -v nix-store >/dev/null || { \
	  echo "Nix is not installed; installing nix-bin by apt"; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -qq && \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nix-bin nix-setup-systemd >/dev/null; }

sshd: ## Install sshd by apt where it is missing, for the tests of builders; it is not started
	@PATH="$$PATH:/usr/sbin" command -v sshd >/dev/null || { \
	  echo "sshd is not installed; installing openssh-server by apt"; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -qq && \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openssh-server >/dev/null; }

venv: $(VENV)/.ready ## Make the virtual environment with the locked libraries

$(VENV)/bin/python:
	@echo "making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: requirements.lock pyproject.toml | $(VENV)/bin/python
	@[ -e $(VENV)/.ready-dev ] || { echo "installing the locked libraries"; \
	  $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.ready-dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing the locked libraries for development"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.ready
