# Two commands do it all: `make demo` and `make test`. Both make the environment in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread a process: the suite runs one process a core. What a test's process compiles, the next ones read.
ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
PYTEST := $(ENV) $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: setup demo docs test test-slow test-lowest lint types clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	touch $@

demo: setup
	$(ENV) $(BIN)/python benchmarks/demo.py --out demo

test: setup lint types
	$(PYTEST)

test-slow: setup
	$(PYTEST) -m slow

# A warning fails. The variable silences an advertisement that mkdocs-material prints.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What pyproject.toml allows, at its lowest: 10 GB for a while, and half an hour on two cores.
test-lowest:
	PYTHON=$(PYTHON) bash tests/lowest_versions.sh

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot see through package-dir: it reads the tree as it is installed.
types: setup
	rm -rf build/merged
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/merged .
	cd build/merged && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml -p nbcompile

clean:
	rm -rf $(VENV) build demo site
