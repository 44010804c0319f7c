# make demo: sparse training on real MNIST, with its table.   make test: the tests.   Both set up what they need.
VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
# Neighbours stay together: what a module's tests share is built once, but where a worker takes over.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-slow test-long lint types examples docs compat modules kernels clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "torch==2.13.0"
	$(INSTALL) --upgrade pip
	$(INSTALL) -e ".[cli,tensorboard,onnx,openvino]" --group dev
	touch $(READY)

demo: $(READY)
	$(BIN)/python examples/mnist_rigl.py

test: $(READY)
	$(BIN)/python -m pytest $(PARALLEL)

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-long: $(READY)
	$(BIN)/python -m pytest -m long

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check lightning_sparse examples benchmarks

types: $(READY)
	$(BIN)/mypy

examples: $(READY)
	cd examples && for file in mnist_rigl raw_loop fabric fine_tune own_algorithm regularize channels int8_onnx compute; do $(BIN)/python $$file.py --fast || exit 1; done
	$(BIN)/lightning-sparse fit --config examples/cli/mnist_rigl.yaml --trainer.max_epochs 1 --data.init_args.limit 6000
	$(BIN)/lightning-sparse fit --config examples/cli/mnist_channels.yaml --trainer.max_epochs 5 --data.init_args.limit 1000

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The oldest Lightning that is supported, on the torch at hand, in an environment of its own; averages came with 2.6.
# Other versions: make compat PYTHON=python3.10 TORCH=2.5.0 LIGHTNING=2.6.6
TORCH ?= 2.13.0
LIGHTNING ?= 2.5.0
COMPAT ?= .venv-compat/$(notdir $(PYTHON))-torch$(TORCH)-lightning$(LIGHTNING)
compat:
	$(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/pip install --quiet "torch==$(TORCH)"
	$(COMPAT)/bin/pip install --quiet --upgrade pip
	$(COMPAT)/bin/pip install --quiet "torch==$(TORCH)" "lightning==$(LIGHTNING)" -e ".[cli,tensorboard]" --group test
	$(COMPAT)/bin/python -m pytest $(PARALLEL) tests/algorithms tests/callbacks \
		$(if $(filter 2.5.%,$(LIGHTNING)),--ignore-glob "tests/callbacks/test_*averaging.py")

# Other people's models, in an environment of their own; torch for the CPU first, so that nothing brings a CUDA build.
# Every version is pinned, also of what builds a package: a new release elsewhere breaks nothing here.
modules: PINNED := -c constraints-modules.txt
modules:
	$(PYTHON) -m venv .venv-modules
	timeout 600 .venv-modules/bin/pip install --quiet $(PINNED) "torch==2.13.0"
	timeout 300 .venv-modules/bin/pip install --quiet $(PINNED) --upgrade pip
	timeout 1800 .venv-modules/bin/pip install --quiet $(PINNED) --build-constraint constraints-modules.txt -e . --group modules
	timeout 600 .venv-modules/bin/python -m pytest -m modules tests/modules

# The kernels against plain loops under sanitizers, on each path that this machine has. AVX-512 is at least compiled, and
# its source, with vectors of its width, runs on what there is. A compiler that came without sanitizers does without, and
# says so.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined
SANITIZE := -std=c++17 -g -O1 -fopenmp -Wall -Wextra -Werror -Wno-psabi
CSRC := lightning_sparse/compute/csrc
KERNELS := .kernels
TRY = $(CXX) $(SANITIZE) $$(cat $(KERNELS)/sanitizers) $(1) $(CSRC)/selftest.cpp -o $(KERNELS)/$(2)
AVX512 := -DISA=avx512 -DLANES=16
kernels: export OMP_WAIT_POLICY := passive
kernels:
	rm -rf $(KERNELS) && mkdir -p $(KERNELS)
	echo "$(SANITIZERS)" > $(KERNELS)/sanitizers
	echo "int main() {}" | $(CXX) $(SANITIZERS) -x c++ - -o $(KERNELS)/any \
		|| { echo "this compiler has no sanitizers" && : > $(KERNELS)/sanitizers; }
	$(call TRY,-DISA=portable -DLANES=4,portable) && $(KERNELS)/portable
	$(call TRY,$(AVX512),wide) && $(KERNELS)/wide
	if grep -qw avx2 /proc/cpuinfo; then $(call TRY,-DISA=avx2 -DLANES=8 -mavx2 -mfma,avx2) && $(KERNELS)/avx2; fi
	if test "$$(uname -m)" = x86_64; then \
		$(call TRY,$(AVX512) -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma,avx512); fi
	if grep -qw avx512vl /proc/cpuinfo; then $(KERNELS)/avx512; fi

clean:
	rm -rf $(VENV) .kernels .venv-compat .venv-modules site logs .mypy_cache .ruff_cache .pytest_cache
