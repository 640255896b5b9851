# `make demo` and `make test` need nothing but Python >= 3.11; each makes .venv itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS ?= axolotl==0.19.0 llamafactory==0.9.5 ms-swift==4.6.0 unsloth==2026.10.9

.PHONY: install demo test test-tools check docs clean

install: $(STAMP)

$(STAMP): pyproject.toml lab/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' -e './lab[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/hrp demo --overwrite

test: $(STAMP)
	$(BIN)/pytest -n 2

# Each in an environment of its own, 3 GB; one of them: make test-tools TOOLS=ms-swift==4.6.0
test-tools:
	set -e; for tool in $(TOOLS); do PYTHON=$(PYTHON) tests/real_tool.sh $$tool; done

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) .tools build dist lab/build lab/dist site .pytest_cache .mypy_cache .ruff_cache hrp-demo
