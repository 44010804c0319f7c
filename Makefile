# make demo: sparse training on real MNIST, with its table.   make test: the tests.   Both set up what they need.
VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
# Neighbours stay together: what a module's tests share is built once, but where a worker takes over.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-slow test-long lint types examples docs compat modules clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "torch==2.13.0"
	$(INSTALL) --upgrade pip
	$(INSTALL) -e ".[cli,tensorboard]" --group dev
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
	cd examples && for file in mnist_rigl raw_loop fabric fine_tune own_algorithm regularize channels; do $(BIN)/python $$file.py --fast || exit 1; done
	$(BIN)/lightning-sparse fit --config examples/cli/mnist_rigl.yaml --trainer.max_epochs 1 --data.init_args.limit 6000
	$(BIN)/lightning-sparse fit --config examples/cli/mnist_channels.yaml --trainer.max_epochs 5 --data.init_args.limit 1000

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The oldest Lightning that is supported, on the torch at hand, in an environment of its own; averages came with 2.6.
compat:
	$(PYTHON) -m venv .venv-compat
	.venv-compat/bin/pip install --quiet "torch==2.13.0"
	.venv-compat/bin/pip install --quiet --upgrade pip
	.venv-compat/bin/pip install --quiet "lightning==2.5.0" -e ".[cli,tensorboard]" --group test
	.venv-compat/bin/python -m pytest $(PARALLEL) tests/algorithms tests/callbacks --ignore tests/callbacks/test_averaging.py --ignore tests/callbacks/test_bn_channel_pruner_averaging.py

# Other people's models, in an environment of their own; torch for the CPU first, so that nothing brings a CUDA build.
modules:
	$(PYTHON) -m venv .venv-modules
	timeout 300 .venv-modules/bin/pip install --quiet "torch==2.13.0"
	timeout 60 .venv-modules/bin/pip install --quiet --upgrade pip
	timeout 1200 .venv-modules/bin/pip install --quiet -c constraints-modules.txt -e . --group modules
	timeout 600 .venv-modules/bin/python -m pytest -m modules tests/modules

clean:
	rm -rf $(VENV) .venv-compat .venv-modules site logs .mypy_cache .ruff_cache .pytest_cache
