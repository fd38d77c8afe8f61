# The tools behind these targets are configured in pyproject.toml; scripts/test needs none of this file.
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup format check test bench clean
help:            ## what there is
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/'
setup: $(BIN)/ruff  ## a virtual environment with everything for development
$(BIN)/ruff: pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
format: setup    ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
check: setup     ## format, lint, types and unit tests: under half a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/unit
test:            ## everything, the tests that boot virtual machines included
	scripts/test
bench: setup     ## the benchmarks of docs/benchmarks.md
	$(BIN)/python -m benchmarks
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist build
