# `make` alone lists what there is. Everything goes into .venv and the user's cache; nothing else is touched.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The tree itself, from what the lock has brought: no network, no isolated build environment.
INSTALL_TREE := $(PIP) install --no-deps --no-build-isolation --editable .
# Tests wait for servers more than they compute. Each process has a Kafka and a Prometheus of its own: a gigabyte.
TEST_PROCESSES ?= 3
# The last run may end up to two minutes later.
SOAK_MINUTES ?= 30
UV_COMPILE := pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-header

.PHONY: help install lock audit check test soak bench demo demo-live clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: .venv/.installed ## .venv with ingestor and stream-app; PYTHON=... chooses the Python (3.11 or newer)

check: .venv/.installed-dev ## style, types and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: .venv/.installed-dev ## make check, then all tests, on a real Kafka and a real Prometheus
	$(BIN)/python -m ingestor.local fetch --backends
	$(MAKE) check
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

soak: .venv/.installed-dev ## faults at random for SOAK_MINUTES, every window compared; PODSTREAM_FAULT_SEED=... repeats a run
	$(BIN)/python tests/soak.py $(SOAK_MINUTES)

bench: .venv/.installed-bench ## how fast it is, on real servers; BENCH='--runs 1 --scale 0.1' is shorter
	$(BIN)/python -m ingestor.local fetch
	$(BIN)/python tests/benchmark/run.py $(BENCH)

demo: install ## history of a made-up cluster, from Prometheus to files
	$(BIN)/python docker/demo/run.py

demo-live: install ## the same, and on with live metrics
	$(BIN)/python docker/demo/run.py --live

lock: ## the lock files anew; UPGRADE=--upgrade takes the newest versions that pyproject.toml allows
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(find_python); \
	"$$python" -m venv "$$scratch/venv"; \
	"$$scratch/venv/bin/python" -m pip --disable-pip-version-check --quiet install uv; \
	uv="$$scratch/venv/bin/uv"; \
	"$$uv" $(UV_COMPILE) $(UPGRADE) pyproject.toml --extra local --extra dev --no-emit-package podstream \
		--output-file requirements-dev.lock; \
	build=$$("$$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")'); \
	"$$uv" $(UV_COMPILE) $(UPGRADE) pyproject.toml - --extra local --constraint requirements-dev.lock \
		--output-file requirements.lock <<< "$$build"; \
	"$$uv" $(UV_COMPILE) $(UPGRADE) pyproject.toml --extra bench --no-emit-package podstream \
		--constraint requirements-dev.lock --output-file requirements-bench.lock; \
	"$$uv" $(UV_COMPILE) $(UPGRADE) pyproject.toml - --extra app --constraint requirements-dev.lock \
		--output-file requirements-docker.lock <<< "$$build"; \
	"$$uv" $(UV_COMPILE) $(UPGRADE) pyproject.toml docker/ml_service/requirements.in - \
		--constraint requirements-dev.lock --output-file docker/ml_service/requirements.lock <<< "$$build"

audit: ## known vulnerabilities of what is installed; fails where the package index does not tell
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(find_python); \
	"$$python" -m venv "$$scratch/venv"; \
	"$$scratch/venv/bin/python" -m pip --disable-pip-version-check --quiet install pip-audit; \
	for lock in requirements.lock requirements-docker.lock docker/ml_service/requirements.lock; do \
		"$$scratch/venv/bin/pip-audit" --strict --progress-spinner off --disable-pip --require-hashes --requirement "$$lock"; \
	done

clean: ## remove .venv and what the tools have left in this folder
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: requirements.lock pyproject.toml | $(BIN)/pip
	$(PIP) install --require-hashes --requirement requirements.lock
	$(INSTALL_TREE)
	@touch $@

.venv/.installed-dev: requirements-dev.lock .venv/.installed
	$(PIP) install --require-hashes --requirement requirements-dev.lock
	@touch $@

.venv/.installed-bench: requirements-bench.lock .venv/.installed
	$(PIP) install --require-hashes --requirement requirements-bench.lock
	@touch $@

$(BIN)/pip:
	@$(find_python); $(find_venv); \
	echo "making .venv with $$("$$python" -V)"; \
	"$$python" -m venv .venv

# Shell: $python is an interpreter that is new enough.
define find_python
	for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11) ''; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo 'error: $(or $(PYTHON),python3) is missing or older than 3.11: type  make install PYTHON=/path/to/python3.11' >&2; \
		exit 1; \
	fi
endef

# Shell: that interpreter can make virtual environments. Debian keeps the means in a package of their own.
define find_venv
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		package=$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
			echo "error: $$python cannot make virtual environments: type  sudo apt-get install -y $$package" >&2; \
			exit 1; \
		fi; \
		echo "installing $$package"; \
		apt-get -qq update || true; \
		DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "$$package"; \
	fi
endef
