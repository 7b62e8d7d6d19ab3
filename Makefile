# Branchwork's three commands: demo, test, check. Each makes its own .venv when there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTED := $(VENV)/.test-installed

.PHONY: demo test check bench clean

demo: $(INSTALLED)
	$(BIN)/branchwork demo

test: $(TESTED)
	$(BIN)/python -m pytest

check: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/check && $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target build/check .
	cd build/check && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p branchwork
	$(BIN)/python -m pytest tests/house

bench: $(TESTED)
	$(BIN)/branchwork bench

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: a plain resolver run would fetch gigabytes of GPU packages that a CPU does not need
$(INSTALLED): $(VENV)/bin/python pyproject.toml setup.py constraints.txt $(wildcard kernels/cpu/*.c runtime/grammar/*.c)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch setuptools wheel
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(TESTED): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
