# make demo: from nothing to a sheet of pictures drawn from captions. make test, make lint, make bench: for developers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/emoji

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

PIP := $(BIN)/python -m pip install --disable-pip-version-check
# One line that says what pip does; nothing but errors where the output is not a terminal.
install = if [ -t 1 ]; then \
	  $(PIP) --progress-bar off $(1) | awk '/Collecting|Downloading|Installing/ \
	    { printf "\r\033[K  %.70s", $$0; fflush() } END { printf "\r\033[K" }'; \
	else $(PIP) --quiet $(1); fi

.PHONY: help setup aot-setup demo test slow aot lint site bench clean

help:
	@echo "make demo    draw with the model in the package, then train on captioned emoji and draw a sheet (10 minutes)"
	@echo "make test    run the tests"
	@echo "make slow    run the long tests: fuzzing, a hundred kills, several hosts, races in kernels (hours)"
	@echo "make aot     compile train steps and kernels for TPUs that are not here"
	@echo "make lint    check style and types"
	@echo "make site    build the documentation into site/; python -m http.server -d site shows it"
	@echo "make bench   time a training step"
	@echo "make setup   install into $(VENV); the others do it when needed"
	@echo "make aot-setup   install the TPU compiler, for lumina aot and lumina bench kernels"
	@echo "make clean   remove $(VENV) and caches; runs/ stays"

setup: $(VENV)/.installed

aot-setup: $(VENV)/.installed-aot

demo: $(VENV)/.installed
	$(BIN)/lumina sample emoji "red heart, fluent style" "smiling face, noto style" "green apple, twemoji style"
	$(BIN)/lumina train emoji
	$(BIN)/lumina evaluate $(RUN)

test: $(VENV)/.installed-dev
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest

slow: $(VENV)/.installed-dev
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 0 -s -m slow

aot: $(VENV)/.installed-dev $(VENV)/.installed-aot
	PYTHONPATH=$(abspath $(VENV))/aot $(BIN)/python -m pytest -m aot -n 0 tests/aot/test_plan.py tests/kernel_bench

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

site: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/train_step.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	  echo "lumina_jax needs Python 3.11 or newer, which $(PYTHON) is not; name one that is:" \
	       "make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot create virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing lumina_jax and what it needs (1.2 GB; a minute or two) ..."
	@$(call install,-e .)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what tests and checks need ..."
	@$(call install,-e '.[dev]')
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Installing what builds the documentation ..."
	@$(call install,-e '.[docs]')
	@touch $@

# The TPU compiler that this jax names, in a folder of its own: beside jax it would make every CPU run look for TPUs.
LIBTPU = $$($(BIN)/python -c "import importlib.metadata as m; \
	  print(next(line.split(';')[0] for line in m.requires('jax') if line.startswith('libtpu')))")

$(VENV)/.installed-aot: $(VENV)/.installed
	@echo "Installing the TPU compiler (190 MB) ..."
	@$(call install,--no-deps --upgrade --target $(VENV)/aot "$(LIBTPU)")
	@touch $@
