# make demo  trains and evaluates on the embedded data set
# make test  runs the tests
# make test-floor  runs a part of them on the oldest supported Python, with the JAX it gets
# make test-aot  compiles small steps for TPUs and GPUs, which need not be there
# make detection-demo  trains a detector on scenes made of the embedded digits
# All make an environment (.venv) first, of the newest supported Python that there is. Another one:
# make PYTHON=python3.12 demo; another folder for the environment: make VENV=DIR demo

# Python 3.15 lacks wheels of array_record.
SUPPORTED := 3.14 3.13 3.12 3.11
FLOOR := 3.11
# The first of some versions that is there (on the PATH, then among pyenv's) and can make
# environments: a name, or nothing.
find_python = $(shell for version in $(1); do \
	for python in "python$$version" "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python python3; do \
		"$$python" -c "import ensurepip, sys; sys.exit('%d.%d' % sys.version_info[:2] != '$$version')" \
			2> /dev/null && echo "$$python" && exit; \
	done; done)

ifndef PYTHON
PYTHON := $(call find_python,$(SUPPORTED))
endif
WORKDIR ?= runs/digits
DETECTOR ?= runs/digit_detector
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS ?= dev
# Installed by uv, in a tenth of pip's time, or by pip, which knows of mirrors in its own configuration.
PACKAGES = --constraint constraints.txt --editable '.[$(EXTRAS)]'
# Two files at a time: compiling, which most of a test is, takes one core.
PYTEST := $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

NOTEBOOKS := $(basename $(notdir $(wildcard notebooks/*.ipynb)))

.PHONY: install demo detection-demo test test-floor test-part test-aot test-compilers test-all lint format check-notebooks notebooks

install: $(STAMP)

$(STAMP): requirements.txt constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: none of Python $(SUPPORTED) was found; name one with make PYTHON=..."; exit 2; }
	@$(PYTHON) -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] not in '$(SUPPORTED)'.split())" || \
		{ echo "error: $(PYTHON) is none of Python $(SUPPORTED); name one with make PYTHON=..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode $(PACKAGES) || $(BIN)/python -m pip install \
		--quiet --disable-pip-version-check $(PACKAGES)
	@touch $@

demo: install
	$(BIN)/python train.py --config=configs/digits_resnext29.py --workdir=$(WORKDIR)
	$(BIN)/python eval.py --config=configs/digits_resnext29.py --workdir=$(WORKDIR)

detection-demo: install
	$(BIN)/python train.py --config=configs/digit_scenes.py --workdir=$(DETECTOR)/classifier
	$(BIN)/python train.py --config=configs/digit_scenes_rpn.py --workdir=$(DETECTOR)/rpn \
		--config.init_from=$(DETECTOR)/classifier
	$(BIN)/python -m resnext_jax.detection.proposals --workdir=$(DETECTOR)/rpn \
		--out=$(DETECTOR)/proposals
	$(BIN)/python train.py --config=configs/digit_scenes_fast_rcnn.py \
		--workdir=$(DETECTOR)/fast_rcnn --config.init_from=$(DETECTOR)/classifier \
		--config.data.proposals=$(DETECTOR)/proposals
	$(BIN)/python eval.py --config=configs/digit_scenes_fast_rcnn.py \
		--workdir=$(DETECTOR)/fast_rcnn --config.data.proposals=$(DETECTOR)/proposals
	$(BIN)/python -m resnext_jax.detection.infer --rpn=$(DETECTOR)/rpn \
		--workdir=$(DETECTOR)/fast_rcnn --out=$(DETECTOR)/pictures --enlarge=3 \
		'runs/digit_scenes/test/00000[0-5].png'

# Most of a test's time is LLVM's, and small programs do not win it back. test-all optimises
# as usual.
QUICK_TESTS = XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0" $(PYTEST) -m "not slow"

test: install
	$(QUICK_TESTS)

# What depends on the version of JAX, and one short training with worker processes.
FLOOR_TESTS := tests/ops tests/optim tests/test_configs.py tests/config/test_cli.py \
	tests/commands/test_export.py tests/commands/test_predict.py tests/data/test_pipeline.py \
	tests/parallel/test_mesh.py tests/runs/test_checkpoint.py tests/training/test_step.py

test-floor:
	@test -n "$(call find_python,$(FLOOR))" || { echo "error: Python $(FLOOR) was not found"; exit 2; }
	$(MAKE) test-part VENV=$(VENV)-$(FLOOR) PYTHON="$(call find_python,$(FLOOR))"

test-part: install
	$(QUICK_TESTS) $(FLOOR_TESTS)
	workdir=$$(mktemp -d) && $(BIN)/python train.py --config=configs/digits_resnext29.py \
		--workdir=$$workdir --config.model.name=resnext11_2x4d --config.num_epochs=0.5 \
		--config.data.num_workers=2 && rm -r $$workdir

# In an environment of its own: JAX takes the compilers for hardware.
test-aot:
	$(MAKE) test-compilers VENV=$(VENV)-aot EXTRAS=dev,aot

test-compilers: install
	$(PYTEST) tests/test_aot.py tests/ops/test_target.py tests/parallel/test_mesh.py

test-all: install
	$(PYTEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A notebook's cells must be those of its .py twin. To change a notebook, edit the .py and run:
# jupytext --to ipynb --execute notebooks/NAME.py
check-notebooks: install
	@mkdir -p build/notebooks
	@for name in $(NOTEBOOKS); do \
		$(BIN)/jupytext --quiet --to py:percent --output - notebooks/$$name.ipynb \
			| sed -n '/^# %%/,$$p' > build/notebooks/$$name.py; \
		sed -n '/^# %%/,$$p' notebooks/$$name.py | diff build/notebooks/$$name.py - \
			|| { echo "error: the cells of notebooks/$$name.ipynb and .py differ"; exit 1; }; \
	done

# Executes every notebook into build/notebooks.
notebooks: check-notebooks
	@for name in $(NOTEBOOKS); do \
		echo "executing $$name"; \
		$(BIN)/python -m nbconvert --log-level ERROR --to notebook --execute \
			--output-dir build/notebooks notebooks/$$name.ipynb || exit 1; \
	done
