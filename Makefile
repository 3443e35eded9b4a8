# Two commands after a clone: `make app` opens the dashboard, `make test` runs the tests. Both set everything up.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

.PHONY: app test lint report bench browser real oracle fuzz wheel clean
.DEFAULT_GOAL := test

ifdef UV
MAKE_VENV = $(UV) venv -q --allow-existing --python $(PYTHON) $(VENV)
INSTALL = $(UV) pip install -q --python $(BIN)/python -c constraints.txt
else
MAKE_VENV = $(PYTHON) -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
endif

$(VENV)/.ready: pyproject.toml constraints.txt
	$(MAKE_VENV)
	$(INSTALL) -e '.[dev]'
	touch $@

app: $(VENV)/.ready  ## open the dashboard
	$(BIN)/vram app

test: $(VENV)/.ready lint  ## everything that is fast and needs no network
	$(BIN)/pytest -n 2

lint: $(VENV)/.ready  ## style, types, import directions
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

report: $(VENV)/.ready  ## the sizing report of Llama 3.2 1B, both entries
	$(BIN)/vram report llama-3.2-1b llama-3.2-1b-card -o report/llama-3.2-1b.html
	$(BIN)/vram report llama-3.2-1b llama-3.2-1b-card -o report/llama-3.2-1b.csv

bench: $(VENV)/.ready  ## start-up, warm estimate, sweep
	$(BIN)/python tests/bench.py

browser: $(VENV)/.ready  ## the dashboard in Debian's chromium
	$(INSTALL) -e '.[browser]'
	$(BIN)/pytest -m browser tests/browser

$(VENV)/.torch: $(VENV)/.ready
	$(INSTALL) torch transformers
	touch $@

real: $(VENV)/.torch  ## a short slice of real torch runs: what was exact stays exact
	$(BIN)/pytest -m real tests/real

oracle: $(VENV)/.torch  ## 20 random configs of each family: the closed forms against traces of the real code
	$(BIN)/python -m tests.real.oracle

fuzz: $(VENV)/.ready  ## a million executions of the readers under coverage guidance
	$(INSTALL) -e '.[fuzz]'
	$(BIN)/python tests/fuzz/readers.py -runs=1000000 -rss_limit_mb=2000 -timeout=5

wheel: $(VENV)/.ready  ## dist/*.whl
	$(BIN)/python -m hatchling build -t wheel

clean:
	rm -rf $(VENV) dist report .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
