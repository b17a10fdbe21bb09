# The tasks of the workbook. `make run` and `make test` set everything up by themselves.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUTF8 := 1

.PHONY: run check test test-long test-contracts up lab docs check-deploy sync hooks doctor lock clean help
.PRECIOUS: .venv/.%

run: .venv/.run ## run the whole lifecycle once, through Airflow, and print what came of it
	@housemlops run

check: .venv/.test ## what to run after each edit: format, lint, notebooks in step, quick tests; two minutes
	@ruff format --check --quiet .
	@ruff check --quiet .
	@lint-imports --no-cache >/dev/null || lint-imports --no-cache
	@housemlops sync --check
	@python -m pytest -n 2 -m "not slow and not long" tests

test: .venv/.test ## the same, and every notebook, the pipeline, the server, the site
	@ruff format --check --quiet .
	@ruff check --quiet .
	@housemlops sync --check
	@python -m pytest -n 3 -rs -m "not long" --junitxml=var/log/junit-tests.xml tests

test-long: .venv/.test ## replays, two workers, promotion and rollback, everything live, JupyterLab: what takes minutes of its own
	@python -m pytest -n 2 -rs -m long --junitxml=var/log/junit-long.xml tests

test-contracts: .venv/.test ## 500 contracts as strangers may write them: each generated server starts, prices, and does nothing else
	@TEST_CONTRACTS=$${TEST_CONTRACTS:-500} python -m pytest tests/test_contracts.py

up: .venv/.docs ## everything live on this machine, with one front page; Ctrl-C stops all of it
	@housemlops up

lab: .venv/.run ## JupyterLab at the index
	@housemlops lab

docs: .venv/.docs ## build the documentation site
	@housemlops docs

check-deploy: .venv/.deploy ## hold deploy/ to what a cluster would find out too late; no cluster is needed
	@housemlops check-deploy

sync: .venv/.run ## format and clean the notebooks, and export the modules
	@housemlops sync

hooks: .venv/.test ## check each commit before it is made (pre-commit), and merge notebooks cell by cell (nbdev)
	@pre-commit install
	@git config merge.nbdev-merge.name "merge notebooks cell by cell"
	@git config merge.nbdev-merge.driver "'$(CURDIR)/$(BIN)/nbdev-merge' %O %A %B %P"

doctor: .venv/.run ## say what is missing or wrong
	@housemlops doctor

lock: .venv/.run ## pin the dependency groups of pyproject.toml anew, for Python 3.11 to 3.13
	@$(LOCK) --upgrade --group test --group benchmarks -o requirements.lock
	@echo uv | $(LOCK) --no-annotate --constraint requirements.lock -o .ci/uv.txt -

clean: ## forget runs, stores and caches (var/, build/, reports/), not the data
	rm -rf var build reports

help: ## these lines
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

LOCK = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
INSTALL = VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet

# The environment holds the dependency groups that were asked for, each at the versions of requirements.lock.
.venv/.%: requirements.lock pyproject.toml $(wildcard etc/*/*) $(BIN)/uv
	@echo "Installing the dependency group '$*' into .venv ..."
	@$(INSTALL) --require-hashes --constraint requirements.lock --group $*
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@cp -R etc .venv/
	@touch .venv/.run $@

$(BIN)/uv: .ci/uv.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; name one with: make run PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv || \
	  { rm -rf .venv; echo "Python cannot make a virtual environment here; on Debian and Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@PIP_USER=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .ci/uv.txt
	@touch $@
