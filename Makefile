# `make` lists the targets. Everything runs out of .venv, which `make install` fills from requirements.lock.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install bench test lint fmt serve locust datasets reference compare report lock clean

PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3.12),python3)
VENV := .venv
BIN := $(VENV)/bin
# uv from PATH, else one of our own: a PATH without it needs nothing but Python and its venv module.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
HOST ?= http://localhost:8000
MODEL_SET ?= mixed
DATASET ?= sample
USERS ?= 1 4 8
DURATION ?= 20

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

# The stamp, not the folder: an installation that was broken off is taken up again.
$(VENV)/.installed: requirements.lock services/inference/pyproject.toml services/bench/pyproject.toml | $(filter .uv/bin/uv,$(UV))
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip sync --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation \
	  --editable services/inference --editable services/bench
	@touch $@

install: $(VENV)/.installed ## install everything into .venv

bench: install ## measure baseline and invalid on this machine, and report (outputs/<run>/report.html)
	$(BIN)/detbench run --compare-outputs --model-set $(MODEL_SET) --dataset $(DATASET) --users $(USERS) --duration $(DURATION)

test: lint ## lint, types and tests
	$(BIN)/pytest

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy services/inference/src services/bench/src

fmt: install ## format, and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: install ## serve on http://localhost:8000 (settings: README, or `.venv/bin/detserver --help`)
	$(BIN)/detserver

locust: install ## Locust's web UI on http://localhost:8089, against HOST
	$(BIN)/locust -f services/bench/src/detbench/load/locustfile.py --web-host 127.0.0.1 --host $(HOST)

datasets: install ## list the datasets; `make datasets NAMES="coco_val2017"` gets some
	$(BIN)/detbench datasets $(NAMES)

reference: install ## store what baseline answers, to compare with
	$(BIN)/detbench reference --model-set $(MODEL_SET) --dataset $(DATASET)

compare: install ## output error of all implementations against the reference
	@test -f outputs/reference/$(MODEL_SET)/manifest.json || $(BIN)/detbench reference --model-set $(MODEL_SET) --dataset $(DATASET)
	$(BIN)/detbench compare --model-set $(MODEL_SET) --dataset $(DATASET)

report: install ## make the report of the newest run again
	$(BIN)/detbench report

lock: | $(filter .uv/bin/uv,$(UV)) ## pin the newest versions of everything in requirements.lock
	$(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
	  --custom-compile-command "make lock" --no-annotate --group dev --upgrade \
	  services/inference/pyproject.toml services/bench/pyproject.toml --output-file requirements.lock

clean: ## remove .venv and caches; data and outputs stay
	rm -rf $(VENV) .uv .mypy_cache .ruff_cache .pytest_cache
