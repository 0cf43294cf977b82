# Each target makes what it needs: an environment in .venv with the tested versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The versions that the tests were run with.
CONSTRAINTS := constraints.txt

.PHONY: help demo test test-slow lint docs fuzz bench-cpu bench-loss bench-gpu bench-quality bench-feed clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/run  ## the whole way on real text: prepare, train, evaluate, export, search
	$(BIN)/jina-jax demo

test: $(VENV)/test  ## the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/test  ## the tests that are marked slow
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'slow and not network and not tpu_compile and not gpu'

lint: $(VENV)/test  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/test  ## the documentation, into build/site; a broken link fails
	$(BIN)/mkdocs build --strict

fuzz: $(VENV)/test  ## a minute of fuzzing for each file format that is read
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds 60

bench-cpu: $(VENV)/test  ## training and encoding beside sentence-transformers: minutes
	$(BIN)/python benchmarks/train_speed.py
	$(BIN)/python benchmarks/train_speed.py --fixed-length --batch-size 32
	$(BIN)/python benchmarks/train_speed.py --model small --batches 2
	$(BIN)/python benchmarks/train_speed.py --model small --batches 2 --fixed-length --mini-batch 16
	$(BIN)/python benchmarks/encode_speed.py

bench-loss: $(VENV)/run  ## memory and time of the loss beside the full matrix
	$(BIN)/python benchmarks/loss.py

bench-gpu: $(VENV)/test  ## matrix products, training and sentence-transformers on a GPU
	$(BIN)/python benchmarks/gpu.py

bench-quality: $(VENV)/test  ## quality and time beside sentence-transformers, Matryoshka: an hour
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/matryoshka.py

bench-feed: $(VENV)/run  ## records a second from shards to batches, and memory
	$(BIN)/python benchmarks/feed.py

clean:  ## remove the environment; runs/ is left alone
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# The marks remember what was installed; a changed list of packages installs again.
$(VENV)/run: $(VENV)/bin/python setup.cfg $(CONSTRAINTS)
	@echo 'installing the tested versions into $(VENV): a minute or two'
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[demo]'
	touch $@

$(VENV)/test: $(VENV)/run
	@echo 'installing what tests and comparisons need too: a minute or two'
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[test]'
	touch $@
