# `make demo` and `make test` need Python 3.11 or newer and nothing else; they set up .venv first.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DECLARED := pyproject.toml constraints.txt

# What `make bench-gpu` measures, where, and where its numbers go.
SHAPE ?= llama-3-8b
DEVICE ?= cuda
DTYPE ?= bfloat16
RESULTS ?= docs/results

.PHONY: demo test lint clean embedded bench-gpu

demo: .venv/demo.stamp
	$(BIN)/linearize convert embedded --recipe demo --out demo-out --overwrite
	@echo "report: $(CURDIR)/demo-out/report.html"

# A process for each processor, of one thread each: models this small gain nothing from more.
test: .venv/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Trains the model that ships with the package again and puts it in place.
embedded: .venv/test.stamp
	$(BIN)/python -m linearize.pretrain --recipe embedded --out embedded-out
	cp embedded-out/*.json embedded-out/*.safetensors linearize/embedded/

# Every bench at the shape of a real model; needs 80 GB of GPU memory. `make bench-gpu SHAPE=tiny
# DEVICE=cpu DTYPE=float32 RESULTS=/tmp/results` tries the path.
bench-gpu: .venv/demo.stamp
	$(BIN)/linearize bench all --shape $(SHAPE) --device $(DEVICE) --dtype $(DTYPE) --out $(RESULTS)

clean:
	rm -rf .venv build dist demo-out demo-out.partial embedded-out embedded-out.partial *.egg-info
	rm -rf .pytest_cache .ruff_cache .hypothesis

.venv/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $$($(PYTHON) --version 2>&1) does not do; linearize needs Python 3.11 or newer:" \
	    "make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/demo.stamp: .venv/python.stamp $(DECLARED)
	@echo "installing linearize into .venv (minutes on the first run) ..."
	@$(PIP) -e ".[plots]"
	@touch $@

.venv/test.stamp: .venv/python.stamp $(DECLARED)
	@echo "installing linearize and its test tools into .venv (minutes on the first run) ..."
	@$(PIP) -e ".[test]" ruff
	@touch $@ .venv/demo.stamp
