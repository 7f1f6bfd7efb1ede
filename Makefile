# make demo  trains and evaluates on the embedded data set
# make test  runs the tests
# make detection-demo  trains a detector on scenes made of the embedded digits
# All make the environment (.venv) first. Another Python: make PYTHON=python3.12 demo

PYTHON ?= python3
WORKDIR ?= runs/digits
DETECTOR ?= runs/digit_detector
BIN := .venv/bin
STAMP := .venv/.installed
# Two files at a time: compiling, which most of a test is, takes one core.
PYTEST := $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

NOTEBOOKS := $(basename $(notdir $(wildcard notebooks/*.ipynb)))

.PHONY: install demo detection-demo test test-all lint format check-notebooks notebooks

install: $(STAMP)

$(STAMP): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "error: Python 3.11 or later is needed; name one with make PYTHON=..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
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

# Most of a test's time is LLVM's, and small programs do not win it back. The commands that tests
# run, and test-all, are optimised as usual.
test: install
	XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0" $(PYTEST) -m "not slow"

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
