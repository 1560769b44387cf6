# make quickstart   install, train on the built-in data set, restore, evaluate (a few minutes)
# make test         install what the tests need, check types and style, run the fast tests
# make test-full    run the slow tests
# make benchmark    install PyTorch, compare with it on a CPU (twenty minutes), write the results

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m devnet_jax.main

.PHONY: quickstart test test-full benchmark

quickstart: .venv/.installed
	@echo "== training =="
	$(RUN) --config=configs/quickstart.py --workdir=runs/quickstart
	@echo "== restoring the checkpoint in a new process, and evaluating again =="
	$(RUN) --mode=eval --workdir=runs/quickstart

test: .venv/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -n auto --dist worksteal --durations=12 -m "not slow"

test-full: .venv/.installed-test
	$(BIN)/pytest -n auto --dist worksteal --durations=12 -m slow

benchmark: .venv/.installed-benchmark
	$(BIN)/python benchmarks/cpu.py --output=benchmarks/results/cpu.json

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

.venv/.installed-benchmark: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable ".[benchmark]"
	@touch $@
