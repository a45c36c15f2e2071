# `make help` lists the targets. Everything is installed into .venv; delete that folder to start afresh.

TASK ?= trec
PYTHON ?= $(shell for p in python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)

BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --no-input --no-warn-conflicts --disable-pip-version-check -c .ci/constraints.txt
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
OFFLINE := HF_HUB_OFFLINE=1
NUMERIC := $(addprefix tests/test_,$(addsuffix .py,gates svd frames_diagonal frames_lower factorizations operators \
	entanglement native_pennylane fixtures tuner_merge)) -k 'not gpt2 and not bert'
AVX2 := $(shell grep -qsw avx2 /proc/cpuinfo && echo yes)
PINS := pyproject.toml .ci/constraints.txt .ci/packages.txt

.PHONY: help demo test numerics lint soak peft-suite matrix bench tutorials docs clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: .venv/demo.stamp  ## adapt a real model with a circuit: make demo TASK=trec
	@$(BIN)/python -m qcircuit_peft.demo $(TASK)

test: .venv/full.stamp  ## run the tests and the doctests
	@$(ONE_THREAD) $(OFFLINE) $(BIN)/python -m pytest -n 2

# Kernels that this machine would not choose; what is asked for only ever lowers what the processor has.
numerics: .venv/full.stamp  ## run tests of numbers on other machines' arithmetic
	@$(if $(AVX2),OPENBLAS_CORETYPE=Haswell) ATEN_CPU_CAPABILITY=default \
		$(ONE_THREAD) $(OFFLINE) $(BIN)/python -m pytest -q -n 2 $(NUMERIC)
	@$(if $(AVX2),ATEN_CPU_CAPABILITY=avx2) OPENBLAS_CORETYPE=Nehalem MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 \
		$(ONE_THREAD) $(OFFLINE) $(BIN)/python -m pytest -q -n 2 $(NUMERIC)

lint: .venv/full.stamp  ## check style, types and the order of imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	@$(BIN)/lint-imports

soak: .venv/full.stamp  ## ten minutes of work on every kind of adapter: make soak MINUTES=60
	@$(ONE_THREAD) $(OFFLINE) PYTHONPATH=tests $(BIN)/python tests/soak.py --minutes $(or $(MINUTES),10)

peft-suite: .venv/full.stamp  ## run PEFT's own tests on our adapters (downloads its source package)
	@$(ONE_THREAD) PYTHONPATH=tests $(BIN)/python tests/peft_suite.py

matrix:  ## test on every Python there is, with the oldest and newest versions allowed (downloads gigabytes)
	@$(PYTHON) tests/matrix.py

bench: .venv/full.stamp  ## time the native backend and a training step
	@$(BIN)/python benchmarks/native.py
	@$(BIN)/python benchmarks/step.py

tutorials: .venv/full.stamp  ## execute tutorials/*.py into the notebooks beside them
	@for t in $(basename $(sort $(wildcard tutorials/*.py))); do \
		$(BIN)/jupytext --quiet --to ipynb --update --set-kernel python3 "$$t.py" && \
		$(ONE_THREAD) $(OFFLINE) $(BIN)/jupyter-nbconvert --log-level=ERROR --to notebook --inplace --execute \
			--ExecutePreprocessor.record_timing=False "$$t.ipynb" || exit 1; done

docs: .venv/full.stamp  ## regenerate the generated parts of docs/, then build the site into site/
	@$(ONE_THREAD) $(OFFLINE) $(BIN)/python -W ignore docs/build.py
	@NO_MKDOCS_2_WARNING=1 $(ONE_THREAD) $(OFFLINE) $(BIN)/mkdocs build --strict

clean:  ## remove caches and build products (.venv stays)
	@rm -rf build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, so that a build already chosen (a CPU build, say) is kept by all that follows.
.venv/torch.stamp: .ci/constraints.txt
	@"$(or $(PYTHON),false)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "qcircuit_peft needs Python 3.11 or newer: install it, or name it with make PYTHON=/path/to/python." >&2; \
		exit 1; }
	@echo "Creating .venv (a few minutes the first time) ..."
	@$(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0
	@touch $@

.venv/demo.stamp: .venv/torch.stamp $(PINS)
	@echo "Installing qcircuit_peft and what the demo needs ..."
	@$(PIP) -e '.[demo]'
	@$(PIP) --no-deps --require-hashes -r .ci/packages.txt
	@touch $@

.venv/full.stamp: .venv/demo.stamp
	@echo "Installing all extras ..."
	@$(PIP) -e '.[pennylane,qiskit,ray,demo,tutorials,docs,dev]'
	@touch $@
