# Two commands do everything on a fresh machine: `make demo` and `make test`. Every target first sets up what it needs.
PYTHON ?= python3
VOC ?=
PY := .venv/bin/python
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-compare test test-fast test-long fuzz golden lint types docs bench clean-env

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

# Pip shows its errors only: on some machines its warnings about their own configuration fill pages.
$(READY): pyproject.toml constraints.txt infra/check_machine.py
	@$(PYTHON) infra/check_machine.py
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install -qq --disable-pip-version-check --upgrade "pip>=25"
	@echo "installing the environment (7 GB, some minutes) ..."
	@$(PY) -m pip install -qq --constraint constraints.txt --editable ".[dev]"
	@touch $@

setup: $(READY) ## make the environment .venv (7 GB, some minutes)

demo: $(READY) ## train from boxes on small data (5 minutes); VOC=DEVKIT runs on a real VOC devkit
	$(PY) -m jobs.demo $(if $(VOC),--voc-root $(VOC))

demo-compare: $(READY) ## train from masks and rectangles too, and compare; after `make demo` it does the rest
	$(PY) -m jobs.demo --compare $(if $(VOC),--voc-root $(VOC))

test: $(READY) ## all tests but the long ones
	$(PY) -m pytest --numprocesses 2

test-fast: $(READY) ## tests without Ray and trainings, under 2 minutes on 2 cores
	$(PY) -m pytest --numprocesses 2 tests/unit tests/golden

test-long: $(READY) ## the tests that are long by nature; `make test` has a short form of each
	$(PY) -m pytest --numprocesses 2 -m "long or hypothesis" --hypothesis-profile long

fuzz: $(READY) ## read damaged files of every kind for an hour; `make test` reads 3,000
	$(PY) -m tests.fuzz

golden: $(READY) ## write the golden values again, after an intended change of the results
	$(PY) -m tests.golden

lint: $(READY) ## style rules and format, by Ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(READY) ## static types, by mypy --strict
	$(PY) -m mypy

docs: $(READY) ## build the pages of docs/ into site/; a broken link is an error
	$(PY) -m mkdocs build --strict

bench: $(READY) ## measure speed and memory (20 minutes); writes docs/results/bench.json and the page of the results
	$(PY) -m jobs.bench all --bench-table docs/results/bench.json
	$(PY) -m jobs.results_page

clean-env: ## remove .venv
	rm -rf .venv
