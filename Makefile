# The two commands of the README: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
DATA_DIR ?= .data
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint docs fashion-mnist clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not optimised"
	XLA_FLAGS= $(BIN)/python -m pytest -n 2 --dist loadfile -m "optimised or realdata"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into site/; what a reader would stumble over is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Real Fashion-MNIST from Debian's package dataset-fashion-mnist, in the format that TFDS reads.
# TensorFlow is needed for this step alone and lives in an environment of its own.
fashion-mnist: $(DATA_DIR)/fashion_mnist

$(DATA_DIR)/fashion_mnist:
	$(PYTHON) -m venv .venv-prepare
	.venv-prepare/bin/python -m pip install -q --disable-pip-version-check tensorflow-cpu tensorflow-datasets importlib_resources array_record
	.venv-prepare/bin/python experiments/prepare_fashion_mnist.py $(DATA_DIR)
	rm -rf .venv-prepare

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hessabs needs Python 3.11 or newer, got $$($(PYTHON) --version); run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[train]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[docs]"
	touch $@

clean:
	rm -rf site .venv .venv-prepare .venv313 .jax_cache runs
