# `make run` exports a simulated account, `make test` runs the tests; both install everything first.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
OLD_DUCKDB := $(wildcard tests/old_duckdb/*.lock)
CONFIG ?= configs/sandbox.toml

.DEFAULT_GOAL := help
.PHONY: help setup run test campaigns check format bench simulate faults crash fuzz lock clean

help: ## List the targets.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

setup: $(STAMP) ## Create .venv from the lock.

$(STAMP): requirements.lock pyproject.toml $(OLD_DUCKDB)
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("etl needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@# Old DuckDB clients, with which the tests read the published file.
	@for lock in $(OLD_DUCKDB); do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
			--target .venv/old-duckdb/$$(basename $$lock .lock) --upgrade -r $$lock || exit 1; \
	done
	@touch $@

run: setup ## Export the simulated account (CONFIG=... for another).
	@# This configuration needs a PostgreSQL server, which is started for it, unless there is one.
	$(if $(WAREHOUSE_DSN),,$(if $(findstring warehouse,$(CONFIG)),$(BIN)/python -m tests.warehouse)) $(BIN)/etl run $(CONFIG)

test: setup ## Run the tests.
	$(BIN)/python -m pytest

AZURITE := .venv/azurite/node_modules/.bin/azurite-blob

$(AZURITE): $(STAMP)
	@# The emulator of Azure's object store. Without npm, its tests are skipped.
	@if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --prefix .venv/azurite azurite@3.37.0; fi

campaigns: setup $(AZURITE) ## Run the tests that take longest: planted bugs, more kills, benchmarks (PATHS= for some).
	$(BIN)/python -m pytest -m campaign -n3 $(PATHS)

check: setup ## Lint, format, types, architecture.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/project/test_architecture.py

format: setup ## Format the code.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup ## Measure speed and memory, compared with the bare pipeline.
	$(BIN)/python -m tests.bench

simulate: setup ## Check the guarantees in N simulated worlds (N=25000, START=0 the first seed).
	$(BIN)/python -m tests.simulation --count $(or $(N),25000) --start $(or $(START),0)

faults: setup ## List the faults of the catalogue and the tests that cover them.
	$(BIN)/python -m tests.support.faults

crash: setup ## Kill and fail publications at every system call (SAMPLE=100 for some).
	$(BIN)/python -m tests.crash --sample $(or $(SAMPLE),0) --seed $(or $(SEED),0)

fuzz: setup ## Read mutated bytes for a while and keep the failures (SECONDS=60).
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60)

lock: ## Update requirements.lock (needs uv).
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--quiet --upgrade --all-extras --group pyproject.toml:dev pyproject.toml -o requirements.lock

clean: ## Remove generated files, except the exported data.
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
