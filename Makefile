# `make help` lists the targets. Nothing is needed but make and Python 3.11 to 3.13.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test check unit coverage pythons newcomer servers integration acceptance chaos soak bench docs lock clean comfyui rabbitmq chromium prometheus clients ollama grpc site-environment

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MOYIN := $(BIN)/moyin
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
# The generator of the documentation site, which users do not need.
SITE_VENV := .venv-docs
SITE_STAMP := $(SITE_VENV)/.installed
# Notes how long the target took, for the table at the end of `make test`.
TIMED = @scripts/timed.sh $@
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A quarter of pip's time, and it keeps both processors busy.
UV := $(BIN)/python -P moyin/system/packages.py $(BIN)/python
# Each of a farm's twenty Python processes would compile our sources anew: 8 s of processor time.
unexport PYTHONDONTWRITEBYTECODE

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | \
		while IFS=$$'\t' read -r name about; do printf '  make %-12s %s\n' "$$name" "$$about"; done

demo: $(RUN_STAMP)  ## install, start everything, show a streamed answer and a rendered picture
	@$(MOYIN) comfyui install
	@$(MOYIN) up
	@$(MOYIN) demo

# Nothing runs beside the servers' tests: what starves a farm of processor time fails tests.
test:  ## every check and test (half an hour or more on two cores), and how long each part took
	@export MOYIN_TIMES=$$(mktemp) && trap 'scripts/timed.sh; rm -f "$$MOYIN_TIMES"' EXIT && \
	scripts/timed.sh install $(MAKE) --no-print-directory $(RUN_STAMP) && \
	$(MAKE) --no-print-directory --jobs=3 --output-sync=target \
		ollama comfyui unit check rabbitmq chromium prometheus clients site-environment && \
	$(MAKE) --no-print-directory servers

check: $(DEV_STAMP)  ## ruff, mypy and the import contracts
	$(TIMED) $(BIN)/ruff check .
	$(TIMED) $(BIN)/ruff format --check .
	$(TIMED) $(BIN)/mypy
	$(TIMED) $(BIN)/lint-imports

unit: $(DEV_STAMP)  ## tests without servers
	$(TIMED) $(BIN)/python -m pytest -q -n 2 tests/unit

# A part whose tests fail is shown as well.
coverage: $(DEV_STAMP) comfyui rabbitmq chromium prometheus ollama site-environment  ## share of lines that unit tests and tests on servers run, by wing
	rm -rf build/coverage
	-COVERAGE_FILE=build/coverage/unit $(BIN)/coverage run -m pytest -q -n 2 tests/unit
	-COVERAGE_FILE=build/coverage/servers $(BIN)/coverage run -m pytest -q -n 2 --no-loadscope-reorder \
		tests/integration tests/acceptance
	@for part in unit servers; do COVERAGE_FILE=build/coverage/$$part $(BIN)/coverage combine --quiet; done
	@$(BIN)/python scripts/coverage_table.py

newcomer:  ## clone this tree, run `make demo` there, and follow docs/studio.md in a browser
	@scripts/newcomer.sh

pythons:  ## unit tests under each Python 3.11 to 3.13 that is installed
	@scripts/pythons.sh

# Two at a time, of which one has the farm that many share: more are no faster on two cores.
# The long ones first, so that neither waits for the other at the end.
servers: $(DEV_STAMP)
	$(TIMED) $(BIN)/python -m pytest -q -n 2 --no-loadscope-reorder \
		tests/chaos tests/integration tests/acceptance

integration: $(DEV_STAMP) comfyui rabbitmq prometheus  ## tests with real servers
	$(BIN)/python -m pytest -q tests/integration

acceptance: $(DEV_STAMP) comfyui chromium clients ollama site-environment  ## tests through clients that others wrote
	$(BIN)/python -m pytest -q tests/acceptance

chaos: $(DEV_STAMP) comfyui  ## tests that kill things
	$(BIN)/python -m pytest -q tests/chaos

soak: $(DEV_STAMP) comfyui  ## 500 renders while something is killed every ten seconds
	$(BIN)/python -m tests.chaos.soak

bench: $(DEV_STAMP) comfyui  ## throughput, as ratios over what stands without us
	@scripts/bench.sh
	$(BIN)/python -m benchmarks

docs: $(DEV_STAMP) site-environment  ## write docs/reference from the code, build the documentation site in site/
	$(BIN)/python -m scripts.reference
	$(BIN)/python -m scripts.matrix
	$(SITE_VENV)/bin/python scripts/docs_site.py

grpc: $(DEV_STAMP)  ## write moyin/jobs/grpc/moyin_pb2* from moyin.proto
	PYTHON=$(BIN)/python scripts/grpc.sh

lock:  ## resolve the dependencies anew
	scripts/lock.sh

clean:  ## stop the stack, remove the environment and caches (not the data in .moyin)
	-@test ! -x $(MOYIN) || $(MOYIN) down
	rm -rf $(VENV) $(SITE_VENV) site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

comfyui: $(RUN_STAMP)
	$(TIMED) $(MOYIN) comfyui install

rabbitmq:
	$(TIMED) scripts/rabbitmq.sh

# One after the other: two of Debian's package managers do not run at once.
prometheus: | rabbitmq
	$(TIMED) scripts/prometheus.sh

chromium: | prometheus
	$(TIMED) scripts/chromium.sh

# What can't be installed is said by the tests that need it, too.
clients: | chromium $(BIN)/python
	-@PYTHON=$(BIN)/python scripts/timed.sh $@ scripts/comfyui_clients.sh > /dev/null
	-@PYTHON=$(BIN)/python scripts/timed.sh text-$@ scripts/text_clients.sh > /dev/null
	-@PYTHON=$(BIN)/python scripts/timed.sh typescript-client scripts/typescript_client.sh > /dev/null
	-@PYTHON=$(BIN)/python scripts/timed.sh console scripts/console.sh install > /dev/null

# What it lacks is said by the tests that need it, too.
ollama:
	$(TIMED) scripts/ollama_server.sh > /dev/null

site-environment: $(SITE_STAMP)

$(BIN)/python:
	@scripts/make_venv.sh $(PYTHON) $(VENV)

$(RUN_STAMP): requirements.lock pyproject.toml moyin/__init__.py | $(BIN)/python
	$(PIP) install --quiet --no-deps "$$(grep '^uv==' requirements.lock)"
	$(UV) --no-deps -r requirements.lock
	$(PIP) install --quiet --no-deps -e .
	@touch $@

$(DEV_STAMP): requirements-dev.lock $(RUN_STAMP)
	@scripts/timed.sh install $(UV) --no-deps -r requirements-dev.lock
	@touch $@

$(SITE_STAMP): requirements-docs.lock $(RUN_STAMP)
	@scripts/make_venv.sh $(PYTHON) $(SITE_VENV)
	@$(BIN)/python -P moyin/system/packages.py $(SITE_VENV)/bin/python --no-deps -r requirements-docs.lock
	@touch $@
