# `make` lists the targets. Everything runs out of .venv, which `make install` fills from requirements.lock.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install bench gpu-bench bench-peers test test-slow test-all test-stack lint fmt serve locust datasets reference compare report \
  up down logs bench-stack outputs dashboards imports lock clean

PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3.12),python3)
VENV := .venv
PEERS := .venv-peers
TRITON := .venv-triton
# Triton's Python backend needs a Python with a shared library, which Debian's is: apt-get install libpython3.11
TRITON_PYTHON ?= /usr/bin/python3.11
BIN := $(VENV)/bin
# uv from PATH, else one of our own: a PATH without it needs nothing but Python and its venv module.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
# The stack, with the GPU where there is one that Docker can use; a cluster with RAY=1. Not `:=`: asked when a target needs it.
COMPOSE = docker compose $$(scripts/compose-files)
export REVISION := $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null)
STACK_IS_UP = test -n "$$(docker ps -q --filter label=com.docker.compose.project=detbench --filter label=com.docker.compose.service=inference 2>/dev/null)"
HOST ?= http://localhost:8000
# Empty: detbench's defaults (mixed, sample), and in the stack what .env says.
MODEL_SET ?=
DATASET ?=
SUBJECT = $(if $(MODEL_SET),--model-set $(MODEL_SET)) $(if $(DATASET),--dataset $(DATASET))
USERS ?= 1 4
DURATION ?= 8
# Rounds, A B and B A: without a second one nothing is known of the noise.
REPEATS ?= 2
IMPLEMENTATIONS ?= baseline invalid fastest
# Four at a time on two cores: tests wait for each other's servers and loads as much as they compute. Threads of torch that wait for
# work otherwise spin on the cores that the other process needs: 0.87 of the time.
PYTEST = OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest --numprocesses 4 --dist loadgroup --no-loadscope-reorder

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

bench: install ## measure baseline, invalid and fastest on this machine, and report (outputs/<run>/report.html)
	$(BIN)/detbench run --compare-outputs --implementations $(IMPLEMENTATIONS) $(SUBJECT) \
	  --users $(USERS) --duration $(DURATION) --repeats $(REPEATS) --warmup 2

# A PYTHON from outside is taken as it is, with everything importable.
gpu-bench: $(if $(filter file,$(origin PYTHON)),install) ## parity, ablation and load of every implementation in one session, see scripts/gpu-bench
	scripts/gpu-bench

$(PEERS)/.installed: services/bench/peers/requirements.lock | $(filter .uv/bin/uv,$(UV))
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(PEERS)
	$(UV) pip sync --python $(PEERS)/bin/python --require-hashes services/bench/peers/requirements.lock
	$(UV) pip install --quiet --python $(PEERS)/bin/python --no-deps --no-build-isolation \
	  --editable services/inference --editable services/bench
	@touch $@

$(TRITON)/.installed: services/bench/peers/triton.lock | $(filter .uv/bin/uv,$(UV))
	$(UV) venv --quiet --allow-existing --python $(TRITON_PYTHON) $(TRITON)
	$(UV) pip sync --python $(TRITON)/bin/python --require-hashes services/bench/peers/triton.lock
	$(UV) pip install --quiet --python $(TRITON)/bin/python --no-deps --no-build-isolation --editable services/inference
	@touch $@

# Triton where its Python is.
bench-peers: $(PEERS)/.installed $(if $(wildcard $(TRITON_PYTHON)),$(TRITON)/.installed) ## the server beside LitServe, BentoML, KServe and Triton, installed for it into .venv-peers and .venv-triton: docs/results/peers.md
	$(PEERS)/bin/python services/bench/peers/bench.py

test: lint ## lint, types and tests
	$(PYTEST)

test-slow: install ## parity of exact implementations, torch.compile, whole sessions (minutes)
	$(PYTEST) -m "slow and not alone" --timeout 1500
	$(PYTEST) -m alone --numprocesses 0

# What both need, as random weights and servers, is made once.
test-all: lint ## test and test-slow in one session
	$(PYTEST) -m "not alone" --timeout 1500
	$(PYTEST) -m alone --numprocesses 0

lint: install ## ruff, mypy, import-linter and hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy services/inference/src services/inference/ray_head.py services/bench/src grafana scripts
	$(BIN)/lint-imports --no-logo --no-cache
	if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint services/*/Dockerfile; fi

test-stack: install ## the stack on a real Docker engine: build, up, load, kill, down; as a cluster, too (Debian, root; about 12 minutes)
	tests/stack/run

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
	$(BIN)/detbench reference $(SUBJECT)

compare: ## output error of all implementations against the reference: in the stack where it is up, else here
	@if $(STACK_IS_UP); then $(COMPOSE) run --rm compare $(SUBJECT); \
	else $(MAKE) --no-print-directory compare-here; fi

compare-here: install
	$(BIN)/detbench reference --keep $(SUBJECT)
	$(BIN)/detbench compare $(SUBJECT)

report: install ## make the report of the newest run again
	$(BIN)/detbench report

up: ## build and start the stack, with the GPU where there is one, as a cluster with RAY=1; prints where to look
	docker compose $$(scripts/compose-files --explain) up --build --detach --wait
	@address() { $(COMPOSE) port "$$1" "$$2" | sed 's/^\(127.0.0.1\|0.0.0.0\):/localhost:/'; }; \
	echo "Locust      http://$$(address locust-master 8089)   start a load here"; \
	echo "Grafana     http://$$(address grafana 3000)   watch it here"; \
	echo "Prometheus  http://$$(address prometheus 9090)"; \
	echo "Server      http://$$(address inference 8000)/docs"

down: ## stop the stack; volumes stay (`docker compose down -v` removes them)
	$(COMPOSE) --profile tools down

logs: ## follow the stack's logs
	$(COMPOSE) logs --follow --tail 50

bench-stack: ## the sweep in the stack, seen in Grafana; results in the volume `outputs` (make outputs)
	$(COMPOSE) run --rm --use-aliases bench $(SUBJECT) --users $(USERS) --duration $(DURATION) --repeats $(REPEATS)

outputs: ## copy reports and references out of the stack into outputs/
	$(COMPOSE) cp locust-master:/outputs/. outputs/

imports: install ## draw docs/imports.svg, which part of each package imports which
	$(BIN)/python scripts/imports_picture.py

dashboards: install ## write grafana/dashboards/*.json from grafana/generate.py
	$(BIN)/python grafana/generate.py

lock: | $(filter .uv/bin/uv,$(UV)) ## pin the newest versions of everything in requirements.lock
	$(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
	  --custom-compile-command "make lock" --no-annotate --group dev --extra onnxruntime --extra openvino-int8 --extra ray \
	  --upgrade services/inference/pyproject.toml services/bench/pyproject.toml --output-file requirements.lock
	$(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
	  --custom-compile-command "make lock" --no-annotate --extra onnxruntime --upgrade services/bench/peers/requirements.in \
	  services/inference/pyproject.toml services/bench/pyproject.toml \
	  --output-file services/bench/peers/requirements.lock
	$(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
	  --custom-compile-command "make lock" --no-annotate --extra onnxruntime --upgrade services/bench/peers/triton.in \
	  services/inference/pyproject.toml --output-file services/bench/peers/triton.lock

clean: ## remove .venv and caches; data and outputs stay
	rm -rf $(VENV) $(PEERS) $(TRITON) .uv .mypy_cache .ruff_cache .pytest_cache
