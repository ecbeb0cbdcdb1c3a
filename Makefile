# PYTHON: the interpreter that creates the virtual environment. VENV: its folder. PIP_ARGS:
# additional arguments of pip. TEST_PROCESSES: the number of processes that run the tests; each
# needs 2.5 GB.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
TEST_PROCESSES ?= auto

BIN := $(VENV)/bin
# NIGHTLY: --nightly also runs the tests that take minutes.
NIGHTLY ?=
# OMP_WAIT_POLICY=passive keeps waiting threads from spinning, which would take the cores from the
# other processes. worksteal runs the tests of a file in one process, so that they share fixtures,
# until another process becomes idle.
PYTEST = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q \
	-n $(TEST_PROCESSES) --maxprocesses 4 --dist worksteal $(NIGHTLY)
# Python compiles a module when it is first imported; compiling all of them here takes 180 MB.
PIP_INSTALL := $(BIN)/python -m pip install --no-compile $(PIP_ARGS) --constraint constraints.txt
STAMP := $(VENV)/mdssd-installed
TEST_STAMP := $(VENV)/mdssd-test-installed
SOURCES := pyproject.toml setup.py constraints.txt CMakeLists.txt \
	$(shell find cmake csrc -type f -not -name '*.py*' -not -name resources.txt \
		-not -path 'csrc/ptx/*' -not -name counts.txt)
CHECKED := $(CURDIR)/build/simt-checked
SANITIZED := $(CURDIR)/build/simt-sanitized

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-checkpoint test simt-check ptx-check ptx-counts nightly all-archs resources gpu-check \
	gpu-day bench bench-report lint format fuzz compat light-weights

help:
	@echo "make demo    install what mdssd runs with into $(VENV), and detect objects in sample scenes"
	@echo "make test    install the test tools too, and run the tests"
	@echo "make simt-check  install, run the CUDA kernels on the CPU, in shuffled order, checked for races, sanitized"
	@echo "make ptx-check   install, run the compiled kernels on the CPU (needs nvcc)"
	@echo "make nightly     these three and the tests that take minutes, more orders of the threads, and the"
	@echo "                 kernels compiled for all architectures: hours, where .ci/run takes minutes"
	@echo "make ptx-counts  write what each kernel costs into csrc/cuda/counts.txt (needs nvcc)"
	@echo "make gpu-check   build and check the kernels on an NVIDIA GPU, with PYTHON as it is"
	@echo "make gpu-day     build, check, measure and profile on an NVIDIA GPU, MINUTES (9) a call; call it again to continue"
	@echo "make bench       install, measure, write benchmarks/results/<machine>.json"
	@echo "make compat      run the adapters' and operators' tests with the newest torch, torchvision and other packages"
	@echo "make bench-report  write docs/benchmarks.md from the newest result, or from FILES='...'"
	@echo "make light-weights  fetch ImageNet weights of EfficientNet-Lite0 for mdssd train --init"
	@echo "make resources   list registers and shared memory of the kernels in resources.txt (needs nvcc)"
	@echo "make lint    install the same, run ruff and mypy"
	@echo "make format  install the same, let ruff reformat the Python files"
	@echo "make fuzz    install, fuzz the readers of bytes for SECONDS each (default 60)"
	@echo "make venv    only install what mdssd runs with"
	@echo "make demo-checkpoint  train the demo's network again (39 minutes on two cores)"

venv: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "mdssd needs Python 3.10 or later as '$(PYTHON)'; name one: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" || \
		{ echo "$(PYTHON) cannot make a virtual environment; Debian, Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(SOURCES) | $(BIN)/python
	$(PIP_INSTALL) --editable .
	touch $@

# The tests and the linters use the same environment, with more packages in it.
$(TEST_STAMP): $(SOURCES) | $(BIN)/python
	$(PIP_INSTALL) --editable '.[test,dev]'
	touch $(STAMP) $@

# passive, as in the command mdssd: a thread that spins is slow where another program has its core.
demo: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python demo/demo.py

demo-checkpoint: $(STAMP)
	$(BIN)/python demo/train.py

test: $(TEST_STAMP)
	$(PYTEST)

# Builds the kernels for the CPU a second time: $(call build_simt,flavour,folder).
build_simt = $(BIN)/cmake -S . -B $(2) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DMDSSD_CUDA=off -DMDSSD_SIMT=$(1) -DPython_EXECUTABLE=$(abspath $(BIN))/python \
		-Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)

# SIMT_SEEDS: orders of the threads in which to run the kernels' tests once more, each alone.
# SANITIZED_TESTS: the tests that run under the sanitizers.
SIMT_SEEDS :=
SANITIZED_TESTS := sanitized or (simt or cpp) and (agrees or post_processing)

# The kernels run in two shuffled orders: one looks for data races and accesses outside of arrays,
# the other, under sanitizers, runs the C++ backend too. LD_PRELOAD loads the sanitizers' libraries
# before Python allocates memory.
simt-check: $(TEST_STAMP)
	for seed in $(SIMT_SEEDS); do \
		$(PYTEST) --small --simt-shuffle $$seed -k "simt and agrees" tests/ops/test_ops.py \
			|| exit 1; \
	done
	$(call build_simt,checked,$(CHECKED))
	$(BIN)/cmake --build $(CHECKED) --target _simt
	MDSSD_MODULES=$(CHECKED) $(PYTEST) --small --simt-shuffle 4 -k "simt and agrees" \
		tests/ops/test_ops.py
	MDSSD_MODULES=$(CHECKED) $(PYTEST) tests/ops/test_simt.py tests/ops/test_*_cuda.py
	$(call build_simt,sanitized,$(SANITIZED))
	$(BIN)/cmake --build $(SANITIZED)
	cxx="$${CXX:-c++}"; \
	MDSSD_MODULES=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$$($$cxx -print-file-name=libasan.so) $$($$cxx -print-file-name=libubsan.so)" \
		$(PYTEST) --small --simt-shuffle 5 -k "$(SANITIZED_TESTS)" \
			tests/ops/test_ops.py tests/ops/test_simt.py tests/ops/test_post_processing_cpp.py

# PTX_ARGS: arguments of tools/ptx_check.py, such as --nightly.
ptx-check: $(TEST_STAMP)
	$(BIN)/python tools/ptx_check.py $(PTX_ARGS)

# What .ci/run leaves out. Each part says why: a test's mark `nightly`, conftest.py, ptx_check.py.
nightly: NIGHTLY := --nightly
nightly: PTX_ARGS := --nightly
nightly: SIMT_SEEDS := 1 2 3
nightly: SANITIZED_TESTS := simt or cpp and (agrees or post_processing)
nightly: test simt-check ptx-check all-archs

# Compiles the kernels for every architecture.
all-archs: $(TEST_STAMP)
	$(BIN)/cmake -S . -B build/all-archs -G Ninja \
		-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DMDSSD_CUDA_ARCHS=all -DMDSSD_SIMT=off \
		-DCMAKE_COMPILE_WARNING_AS_ERROR=on -DPython_EXECUTABLE=$(abspath $(BIN))/python \
		-Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/all-archs

ptx-counts: $(TEST_STAMP)
	$(BIN)/python tools/ptx_check.py --counts

resources: $(TEST_STAMP)
	$(BIN)/python tools/compile_triton.py --report
	$(BIN)/python tools/cuda_resources.py

# PRETEND=1 rehearses without a GPU, with what `make test` installs. DAY_ARGS: arguments of
# tools/gpu_day.py, such as "--again failed".
MINUTES ?= 9
ifdef PRETEND
GPU_PYTHON := $(BIN)/python
gpu-check gpu-day: $(TEST_STAMP)
else
GPU_PYTHON := $(PYTHON)
endif

gpu-check:
	$(GPU_PYTHON) tools/gpu_check.py $(if $(PRETEND),--pretend)

gpu-day:
	$(GPU_PYTHON) tools/gpu_day.py --minutes $(MINUTES) $(if $(PRETEND),--pretend) $(DAY_ARGS)

$(VENV)/mdssd-bench-installed: $(TEST_STAMP)
	$(PIP_INSTALL) --editable '.[test,dev,bench]'
	touch $@

# BENCH_ARGS: additional arguments of pytest, such as -k nms.
bench: $(VENV)/mdssd-bench-installed
	mkdir -p build
	$(BIN)/python -m pytest benchmarks/ --benchmark-only --benchmark-json=build/benchmarks.json \
		$(BENCH_ARGS)
	$(BIN)/python -m benchmarks.report --keep build/benchmarks.json

bench-report: $(TEST_STAMP)
	$(BIN)/python -m benchmarks.report $(FILES)

# Each target of tools/fuzz_bytes.py for SECONDS seconds. An input that fails is left in build/fuzz.
SECONDS ?= 60
FUZZ_TARGETS := jpeg png caffemodel checkpoint-json safetensors-header csv arrow

$(VENV)/mdssd-fuzz-installed: $(TEST_STAMP)
	$(PIP_INSTALL) --editable '.[test,dev,fuzz]'
	touch $@

fuzz: $(VENV)/mdssd-fuzz-installed
	mkdir -p build/fuzz
	for target in $(FUZZ_TARGETS); do \
		$(BIN)/python tools/fuzz_bytes.py $$target -max_total_time=$(SECONDS) -verbosity=0 \
			-artifact_prefix=build/fuzz/$$target- || exit 1; \
	done

# TORCH, TORCHVISION: versions; without them, the newest. COMPAT: the environment's folder.
TORCH ?=
TORCHVISION ?=
COMPAT ?= build/compat$(addprefix -,$(TORCH))

compat: $(STAMP)
	$(BIN)/python tools/compat.py --venv $(COMPAT) --torch "$(TORCH)" --torchvision "$(TORCHVISION)"

# The package of the weights goes into a folder of its own.
light-weights: $(STAMP)
	mkdir -p build
	$(BIN)/python tools/light_weights.py --folder build/light-weights \
		--out build/lite0.safetensors

lint: $(TEST_STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(TEST_STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
