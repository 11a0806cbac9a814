# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up what it needs first.
PYTHON ?= python3
VOC ?=
PY := .venv/bin/python
READY := .venv/.ready

.PHONY: demo test lint types bench setup clean-env

$(READY): pyproject.toml constraints.txt infra/check_machine.py
	@$(PYTHON) infra/check_machine.py
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25"
	@echo "installing the environment (7 GB, some minutes) ..."
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

setup: $(READY)

# VOC=<devkit root> runs on a real VOC devkit instead of the embedded data.
demo: $(READY)
	$(PY) -m jobs.demo $(if $(VOC),--voc-root $(VOC))

test: $(READY)
	$(PY) -m pytest --numprocesses 2

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(READY)
	$(PY) -m mypy

bench: $(READY)
	$(PY) -m jobs.bench
	$(PY) -m jobs.bench.memory

clean-env:
	rm -rf .venv
