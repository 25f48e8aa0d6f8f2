# make demo | ui | test | lint | types | check | setup
#   PYTHON=...       the Python 3.11+ that makes .venv
#   TORCH_INDEX=URL  take torch from another package index (another build of torch; the download can be large)
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
INSTALLED := .venv/.installed

export DAGSTER_DISABLE_TELEMETRY := yes
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export HF_HUB_DISABLE_TELEMETRY := 1
export TRL_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo ui test lint types contracts validate check
.DELETE_ON_ERROR:

setup: $(INSTALLED)

ifneq ($(TORCH_INDEX),)
.PHONY: $(INSTALLED)
endif

# torch goes first, at the constrained version, so that no other package pulls in a larger build of it. Of another index
# torch alone is taken: what it depends on comes with the second line.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q && apt-get install -qy python3-venv; \
	  else echo "Python's venv module is missing: install the package python3-venv" >&2; exit 1; fi
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q $(if $(TORCH_INDEX),--force-reinstall --no-deps --index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/rlaif run --profile pocket

ui: setup
	$(BIN)/rlaif ui --profile pocket

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

contracts: setup
	$(BIN)/lint-imports

validate: setup
	$(BIN)/dagster definitions validate -w workspace.yaml
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/dg check defs

check: test lint types contracts validate
