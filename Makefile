# make demo, make test, make lint: each sets up what it needs, once, in .venv.
# make test WORKERS=16 TESTS=tests/modes: on more cores than two, and a part of them.
# make test-torch VERSION=2.11: the suites that depend most on torch, on another release of it, in .venv-torch-2.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-torch fuzz survey lint format clean
demo: $(VENV)/.installed
	$(BIN)/hyperopt run recipes/digits_lr.yaml

# Processes that tests run in, each with one thread (tests/conftest.py): one more than two cores, for one of them often
# waits, as for Slurm. A file stays whole, for what its tests share; files begin in their order, which ends with short
# ones.
WORKERS ?= 3
PYTEST := -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed
	$(BIN)/python $(PYTEST) $(TESTS)

# 2,000 random training runs with random defects, continued where it was ended: FUZZ="--seed 1 --cases 300" for others.
fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.fuzz $(FUZZ)

# 300 ordinary models and losses, continued likewise: is one refused that could be differentiated?
survey: $(VENV)/.installed
	$(BIN)/python -m tests.fuzz.survey $(SURVEY)

TORCH_VENV ?= .venv-torch-$(VERSION)
TORCH_TESTS ?= tests/program tests/dynamics tests/engines tests/checks tests/modes tests/optimizers
test-torch: $(TORCH_VENV)/.installed-torch
	$(TORCH_VENV)/bin/python -c 'import torch; print("torch", torch.__version__)'
	$(TORCH_VENV)/bin/python $(PYTEST) $(TORCH_TESTS)

$(TORCH_VENV)/.installed-torch: pyproject.toml
	@test -n "$(VERSION)" || { echo "name a release of torch: make test-torch VERSION=2.11"; exit 1; }
	$(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(TORCH_VENV)/bin/python -m pip install --quiet 'torch==$(VERSION).*' torchvision --editable '.[dev]'
	@touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .venv-torch-* .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hyperopt needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@command -v g++ >/dev/null || \
	  echo "note: no g++ here; everything runs, but torch cannot compile (apt-get install g++)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
