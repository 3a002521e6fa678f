# What a person or a CI job runs. `make` alone lists it.
#
#   PYTHON   the interpreter the virtual environment is made from   (python3)
#   CUDA     AUTO, ON or OFF: build the CUDA module                 (AUTO where a GPU is visible, else OFF)
#   JOBS     compilers and tests at a time                          (the cores this process may use)
#   OUT      the folder that gpu-check writes                       (runs/gpu-check)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
CUDA ?= $(if $(findstring GPU,$(shell nvidia-smi -L 2>/dev/null)),AUTO,OFF)
JOBS ?= $(shell nproc)
OUT ?= runs/gpu-check

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
export PATH := $(CURDIR)/$(BIN):$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export CMAKE_GENERATOR := Ninja
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The editable install is built in place, without isolation, so that a change in csrc/ recompiles
# only what it touches. A machine without CMake gets it from the registry.
BUILD_REQUIRES := scikit-build-core pybind11 ninja $(if $(shell command -v cmake),,cmake)
INSTALL := $(PIP) install -q -c constraints.txt --no-build-isolation \
	--config-settings=build-dir=build/editable --config-settings=cmake.define.FASTMMD_CUDA=$(CUDA)
NATIVE := CMakeLists.txt $(shell find cmake csrc -type f)
CXX_FILES := $(shell find csrc tests benchmarks fastmmd -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
PY_DIRS := fastmmd tests benchmarks docs examples

.PHONY: help
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- environment ---------------------------------------------------------------------------------

.PHONY: install
install: $(VENV)/.module  ## .venv with the package (editable) and the extras train, test, bench

$(VENV)/.requirements: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt $(BUILD_REQUIRES)
	$(INSTALL) -e '.[train,test,bench]'
	touch $@

$(VENV)/.module: $(VENV)/.requirements build/.config $(NATIVE)
	$(INSTALL) --no-deps -e .
	touch $@

$(VENV)/.docs: $(VENV)/.requirements
	$(INSTALL) -e '.[docs]'
	touch $@

# Changes only when a setting does, and then rebuilds the module.
build/.config: FORCE
	@mkdir -p $(@D)
	@echo 'CUDA=$(CUDA)' | cmp -s - $@ || echo 'CUDA=$(CUDA)' > $@
FORCE:

# --- the main job --------------------------------------------------------------------------------

.PHONY: demo bench gpu-check
demo: install  ## train and align a digit classifier, with and without MMD; results in runs/demo
	$(BIN)/fastmmd demo

bench: install  ## time and memory beside plain PyTorch and torch.compile; results in runs/bench
	$(BIN)/python -m benchmarks -o runs/bench

# With the Python it is called with, not that of .venv, and nothing from a network.
gpu-check:  ## on a machine with a GPU: build, test, sanitize, measure, in 9 minutes; results in OUT
	PATH="$${PATH#$(CURDIR)/$(BIN):}" $(PYTHON) -m benchmarks.gpu_check --out "$(OUT)"

# --- checks --------------------------------------------------------------------------------------

.PHONY: test pytest fuzz lint format sanitize docs doctest
test: lint docs doctest sanitize pytest  ## everything CI asks for

# Tests run side by side: with more threads each, these would wait for each other.
FEW_THREADS := OMP_NUM_THREADS=2

pytest: install
	$(FEW_THREADS) $(BIN)/python -m pytest -p no:benchmark -n $(JOBS) --dist loadgroup

fuzz: install  ## a million random cases against the oracle
	FASTMMD_FUZZ_CASES=1000000 $(FEW_THREADS) $(BIN)/python -m pytest -p no:benchmark -n $(JOBS) --dist loadgroup tests/test_fuzz.py

lint: install  ## ruff, mypy, clang-format; changes nothing
	$(BIN)/ruff check $(PY_DIRS)
	$(BIN)/ruff format --check $(PY_DIRS)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: install  ## ruff and clang-format, in place
	$(BIN)/ruff check --fix $(PY_DIRS)
	$(BIN)/ruff format $(PY_DIRS)
	$(BIN)/clang-format -i $(CXX_FILES)

# Side by side, as each waits long for its largest files.
sanitize: install  ## the native core's own tests under ASan + UBSan and under TSan
	mkdir -p build; pids=(); failed=0; \
	for sanitizer in address,undefined thread; do \
	  dir=build/sanitize-$${sanitizer%,*}; \
	  ( { cmake -S . -B $$dir -DFASTMMD_NATIVE_TESTS=ON -DFASTMMD_SANITIZE=$$sanitizer && \
	      cmake --build $$dir; } >$$dir.log 2>&1 || { cat $$dir.log; exit 1; }; \
	    $$dir/test_core >$$dir.out 2>&1 || { cat $$dir.out; exit 1; }; \
	    echo "$$sanitizer: $$(tail -1 $$dir.out)" ) & \
	  pids+=($$!); \
	done; \
	for pid in "$${pids[@]}"; do wait $$pid || failed=1; done; exit $$failed

docs: install $(VENV)/.docs  ## the documentation site, in docs/_build/html
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

doctest: install $(VENV)/.docs  ## every example in the documentation and the docstrings
	$(BIN)/python -m sphinx -q -W --keep-going -b doctest docs docs/_build/doctest

# --- releases ------------------------------------------------------------------------------------

.PHONY: wheel sdist clean
wheel: install  ## a wheel for this machine's Python in dist/, repaired, without a second libgomp
	rm -rf build/wheel
	$(PIP) wheel . --no-deps -w build/wheel
	$(BIN)/python -m auditwheel repair --exclude libgomp.so.1 -w dist build/wheel/*.whl

sdist: install  ## a source archive in dist/
	$(BIN)/python -c "from scikit_build_core.build import build_sdist; build_sdist('dist')"

clean:  ## all that is built, but not .venv
	rm -rf build dist docs/_build
	rm -f $(VENV)/.module
