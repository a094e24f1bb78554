# `make help` lists the targets. Each sets up what it needs, given Python 3.11 or newer and, for tests, a C compiler.

PYTHON ?= python3

# What ships covers every architecture and also works with drivers of CUDA 12: toolchain 13.0 starts at sm_75.
CUDA   ?= $(if $(filter bundle wheel,$(MAKECMDGOALS)),12,13)

VENV    := $(if $(filter 13,$(CUDA)),.venv,.venv-cuda$(CUDA))
BIN     := $(VENV)/bin
TOOLS   := $(VENV)/.toolchain
TESTING := $(VENV)/.testing
ARCH    ?=
NATIVE  := softmax_ops/native/calls.abi3.so
C_SOURCES := $(wildcard softmax_ops/native/*.[ch])
PEERS   := $(VENV)/.peers
BENCH   := $(BIN)/python -m benchmarks
BENCHFLAGS ?= --budget 480s
TESTFLAGS ?= -n auto --dist loadgroup
OF_TOOLCHAIN := toolchain resolve launcher native serving kernels gates
FLAGS   := $(foreach arch,$(ARCH),--arch $(arch))

.DEFAULT_GOAL := help
.PHONY: help generate check-generated test test-quick test-sample test-all lint format bundle wheel bench bench-quick bench-report bench-costs bench-host predictions clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  BENCHFLAGS='--budget 480s' sets the options of bench."
	@echo "  CUDA=12 selects the 12.9 toolchain (for sm_70; used by bundle and wheel), ARCH='sm_80 sm_90' the architectures."

generate: $(TOOLS)  ## Render the kernels into generated/ and compile them for the GPUs found, or for sm_90
	$(BIN)/python -m codegen write
	$(BIN)/python -m codegen compile $(FLAGS)

check-generated: $(TOOLS)  ## Fail if generated/ is not what the templates render
	$(BIN)/python -m codegen check

test: $(TESTING) $(NATIVE)  ## Run every test; without a GPU the kernels run on the PTX interpreter
	$(BIN)/python -m pytest $(TESTFLAGS)

test-quick: $(TESTING) $(NATIVE)  ## Run the quick tests: all except executed kernels and tests that start many processes
	$(BIN)/python -m pytest -m "not kernels and not slow" $(TESTFLAGS)

test-sample: $(TESTING) $(NATIVE)  ## Run what the toolchain decides: compiling, loading, launching, and a sample of the kernels
	$(BIN)/python -m pytest --sample $(TESTFLAGS) $(foreach file,$(OF_TOOLCHAIN),tests/test_$(file).py)

test-all: $(TESTING) $(NATIVE)  ## Run every test, and every kernel for every architecture that the toolchain supports
	$(BIN)/python -m pytest --all-architectures $(TESTFLAGS)

lint: $(TESTING)  ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)
	$(BIN)/mypy

format: $(TESTING)  ## Format the Python and C sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_SOURCES)

bundle: $(TOOLS)  ## Compile every kernel for every architecture into build/softmax_ops.bundle; KEY=FILE signs it
	$(if $(KEY),$(BIN)/python -m pip install --quiet --disable-pip-version-check 'cryptography>=42')
	$(BIN)/python -m codegen bundle $(FLAGS) $(if $(KEY),--sign '$(KEY)')

wheel: bundle  ## Build the wheel, which includes that bundle, into dist/
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

bench: $(TESTING) $(NATIVE)  ## Measure the kernels and their peers on this machine's GPU, in rank order; continues where it stopped
	@$(BENCH) gpu
	@$(MAKE) --no-print-directory $(PEERS)
	$(BIN)/python -m codegen compile
	$(BENCH) run $(BENCHFLAGS); status=$$?; $(BENCH) costs first eager; $(BENCH) report; exit $$status

bench-quick: BENCHFLAGS = --first 12 --budget 120s
bench-quick: bench  ## The same for the first dozen cells, in two minutes

bench-report: $(TESTING)  ## Draw README's table, docs/benchmarks.md and the plots from the results
	$(BENCH) report

bench-costs: $(TESTING) $(NATIVE)  ## Measure what compiling and loading cost; needs no GPU
	$(BENCH) costs generate first

predictions: $(TESTING)  ## Predict every cell on an H200 from instructions and bytes; needs no GPU
	$(BENCH) predict

bench-host: $(TESTING) $(NATIVE)  ## Measure what a launch costs on the CPU; needs no GPU
	$(BIN)/python -m benchmarks.host

clean:  ## Remove environments and build products; keeps the cache of kernels
	rm -rf .venv .venv-cuda12 build dist $(NATIVE) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "softmax-ops needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(TOOLS): codegen/requirements-cuda$(CUDA).txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

$(TESTING): tests/requirements.txt $(TOOLS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(NATIVE): $(wildcard softmax_ops/native/*.c softmax_ops/native/*.h) hatch_build.py $(TESTING)
	@$(BIN)/python hatch_build.py || echo "softmax_ops/native was not compiled: calls go through Python, which costs more"

$(PEERS): benchmarks/requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $< && touch $@ || \
		echo "not every peer could be installed: the run names those that are absent"
