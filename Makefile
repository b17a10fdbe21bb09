# The tasks of the workbook. `make run` and `make test` set everything up by themselves.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
STAMP := .venv/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUTF8 := 1

.PHONY: run test test-contracts up lab docs check-deploy sync doctor lock clean help

run: $(STAMP) ## run the whole lifecycle once, through Airflow, and print what came of it
	@housemlops run

test: $(STAMP) ## every check: sync, notebooks, pipeline, server, site
	@sh tests/run.sh

test-contracts: $(STAMP) ## 500 contracts as strangers may write them: each generated server starts, prices, and does nothing else
	@TEST_CONTRACTS=$${TEST_CONTRACTS:-500} python -m pytest -q -p no:cacheprovider tests/test_contracts.py

up: $(STAMP) ## everything live on this machine, with one front page; Ctrl-C stops all of it
	@housemlops up

lab: $(STAMP) ## JupyterLab at the index
	@housemlops lab

docs: $(STAMP) ## build the documentation site
	@housemlops docs

check-deploy: $(STAMP) ## hold deploy/ to what a cluster would find out too late; no cluster is needed
	@housemlops check-deploy

sync: $(STAMP) ## clean the notebooks and export the modules
	@housemlops sync

doctor: $(STAMP) ## say what is missing or wrong
	@housemlops doctor

lock: $(STAMP) ## pin requirements.in anew, for Python 3.11 to 3.13
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade requirements.in -o requirements.lock

clean: ## forget runs, stores and caches (var/, build/, reports/), not the data
	rm -rf var build reports

# The environment: made once, and again only when the lock has changed.
$(STAMP): requirements.lock pyproject.toml ipython_kernel_config.py
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; name one with: make run PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv || \
	  { rm -rf .venv; echo "Python cannot make a virtual environment here; on Debian and Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@echo "Installing the pinned environment into .venv (once; about 1.5 GB) ..."
	@awk '/^uv==/{p=1} p{print} p&&!/\\$$/{exit}' requirements.lock > .venv/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock
	@VIRTUAL_ENV=.venv $(BIN)/uv pip sync --compile-bytecode --require-hashes requirements.lock
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@mkdir -p .venv/etc/ipython && cp ipython_kernel_config.py .venv/etc/ipython/
	@touch $(STAMP)

help: ## these lines
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14
