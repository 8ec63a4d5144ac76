# Every target sets up what it needs first; `make setup` alone makes .venv/bin/rushes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test lint bench chaos proto clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt tests/ascmhl.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Rushes needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
		  echo "Name another one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) comes without venv (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(PYTHON) -m venv $(VENV)/ascmhl
	$(VENV)/ascmhl/bin/python -m pip install --quiet --disable-pip-version-check -r tests/ascmhl.txt
	@touch $(READY)

demo: $(READY)
	$(BIN)/python -m demo

# Installs what the tests on real file systems need where it may; elsewhere says what is missing.
test: $(READY)
	@$(BIN)/python -m tests.filesystems
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking --against proto/released.binpb
	$(BIN)/python -m tools.proto --check
	$(BIN)/python -m tools.diagrams --check
	$(BIN)/python -m tools.contracts --check

# The peer is measured in the same run where it can be installed; without it the rest is.
bench: $(READY)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.surfaces
	$(BIN)/python -m benchmarks.offload

# kill -9, 200 times, with executions of all shapes in flight: docs/reliability.md.
chaos: $(READY)
	$(BIN)/python -m tests.chaos --kills 200
	$(BIN)/python -m tests.chaos.copying --kills 100

# Generated files, made again after a change of what they are generated from.
proto: $(READY)
	$(BIN)/python -m tools.proto
	$(BIN)/python -m tools.diagrams
	$(BIN)/python -m tools.contracts

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
