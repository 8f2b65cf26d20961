# SPDX-License-Identifier: Apache-2.0
# Everything sets itself up: the first target creates .venv and installs the package with its extension.
#
#   make train            the main job; PRESET="digits cats" (or clusters), ARGS="--..." go to `python -m gangealing_fast.train`
#   make test             all tests on WORKERS processes of one thread, then a quick selection of the benchmarks;
#                         PYTEST_ARGS="-m 'not slow'" and the like
#   make coverage         how much of the package's Python the tests run: a table and the total
#   make versions         compile against the headers of torch 2.10 and 2.11; operators and Triton kernels under torch 2.11, Triton 3.6
#   make fuzz             10 000 random calls of every operator against its float64 reference; FUZZ_EXAMPLES=... for another number
#   make gpu-report       docs/gpu-report.md: what can be shown about the GPU kernels without a GPU (needs nvcc)
#   make lint             ruff, mypy and clang-format
#   make format           put Python and C++ into the form that lint asks for
#   make bench            time operators and the training step on this CPU, with AVX-512 and as if it had AVX2 alone, write
#                         docs/performance.md (about 20 minutes for each of the two)
#   make bench-gpu        the same on a CUDA device, docs/performance-gpu.md
#   make api              docs/api.md from the docstrings
#   make rebuild          recompile what changed in csrc
#   make clean            forget environment and build
#
# NO_INSTALL=1 with any of these takes PYTHON as it is, makes no environment and installs nothing: the library is built in place.

PYTHON ?= python3
VENV ?= .venv
PRESET ?= digits cats
ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
FUZZ_EXAMPLES ?= 10000

NO_INSTALL ?=

BUILD_INPUTS := pyproject.toml setup.py $(wildcard _build/*.py) $(shell find csrc -type f 2>/dev/null)

.PHONY: train test coverage fuzz gpu-report lint format bench bench-gpu versions rebuild env clean install api

ifeq ($(NO_INSTALL),)
BIN := $(VENV)/bin
RUN := $(BIN)/python
STAMP := $(VENV)/.installed
else
RUN := $(PYTHON)
BIN := $(patsubst %/,%,$(dir $(shell command -v $(PYTHON))))
STAMP := build/.in-place
endif

install: $(STAMP)

ifeq ($(NO_INSTALL),)
$(RUN):
	$(PYTHON) -m venv $(VENV)

# --editable in the environment itself: torch is installed first, so that the build finds it and needs no second one.
$(STAMP): $(RUN) $(BUILD_INPUTS)
	$(RUN) -c "import torch" 2>/dev/null || $(RUN) -m pip install "torch>=2.10"
	$(RUN) -m pip install --editable '.[test,lint]'
	touch $(STAMP)
else
$(STAMP): $(BUILD_INPUTS)
	GGF_REQUIRE_EXTENSION=1 $(RUN) setup.py build_ext --inplace
	mkdir -p build && touch $(STAMP)
endif

TRAIN := $(RUN) -m gangealing_fast.train
train: $(STAMP)
	$(foreach preset,$(PRESET),$(TRAIN) --preset $(preset) $(ARGS) &&) $(if $(PRESET),true,$(TRAIN) $(ARGS))

# Each process takes its half in order, slow tests first, and what is left of another's when it is done.
SHARED_OUT := -n $(WORKERS) --dist worksteal
test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(SHARED_OUT) $(PYTEST_ARGS)
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(RUN) -m pytest $(SHARED_OUT) tests/triton_kernels
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(SHARED_OUT) benchmarks -m quick --benchmark-disable

coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --cov --cov-report=term $(PYTEST_ARGS)

fuzz: $(STAMP)
	OMP_NUM_THREADS=1 GGF_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(RUN) -m pytest -n $(WORKERS) --durations=0 tests/test_fuzz.py

CPP := $(shell find csrc tests/emulation -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)
lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(STAMP)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(BIN)/clang-format -i $(CPP)

# A variant that computes something else is an error, but what can be measured is measured and reported.
bench: $(STAMP)
	$(RUN) -m benchmarks.suite --command "make bench"

bench-gpu: $(STAMP)
	$(RUN) -m benchmarks.suite --device cuda --command "make bench-gpu"

versions: $(STAMP)
	$(RUN) -m tools.check_torch_versions

env: $(STAMP)
	$(RUN) -m gangealing_fast.env

api: $(STAMP)
	$(RUN) tools/make_api.py

gpu-report: $(STAMP)
	$(RUN) -m tools.gpu_report

rebuild: $(STAMP)
	GGF_REQUIRE_EXTENSION=1 $(RUN) setup.py build_ext --inplace

clean:
	rm -rf $(VENV) build gangealing_fast/_C.so gangealing_fast/_C.json
