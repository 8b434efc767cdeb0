PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/.done
	$(BIN)/python examples/demo.py

test: .venv/.done
	$(BIN)/python -m pytest -q

check: .venv/.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache demo-output

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e ".[dev]"
	touch $@
