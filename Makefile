# `make demo` and `make test` do everything from a fresh clone: environment, install, run.
PYTHON ?= python3
BIN := .venv/bin
DEMO_OUT ?= runs/quickstart

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/ilora quickstart --out $(DEMO_OUT)

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Torch first, from the pins: whatever depends on it must not choose another one.
.venv/installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch triton numpy
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info runs
