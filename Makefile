PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check weights figures clean

DATA ?= ../shared/data

demo: .venv/.done
	$(BIN)/python examples/demo.py

test: .venv/.done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

check: .venv/.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The weights that ship, from the data: hours on a CPU; every stage goes on where it was interrupted.
weights: .venv/.done
	set -e; for stage in $(sort $(wildcard configs/segmentation*.yaml)); do \
		$(BIN)/vlm train segmentation --config $$stage --data $(DATA) --resume; done
	cp runs/segmentation_4/model/* seg_backbone/weights/default/
	$(BIN)/vlm train alignment --config configs/vlm.yaml --data $(DATA) --resume
	$(BIN)/vlm train instruction --config configs/vlm.yaml --data $(DATA) --resume
	cp runs/instruction/model/* vlm/weights/default/

# Every figure of the README, from the weights that ship.
figures: .venv/.done
	$(BIN)/python benchmarks/validation.py --data $(DATA)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache demo-output

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e ".[dev]"
	touch $@
