# Two commands matter: `make demo` and `make test`. Each makes its own environment with pip.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TESTS  ?= tests/unit tests/federation tests/docs

export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION = 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: demo test test-system check bench docs format install clean

demo: $(READY)          ## four training sites and an external one, on a phantom
	$(BIN)/iedn-simulate run demo --out runs/demo

test: $(READY)          ## unit, federation and documentation tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(TESTS)

test-system: $(READY)   ## real processes, killed and restarted; goes on where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 \
		--progress runs/test-system.jsonl tests/system

check: $(READY)         ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

bench: $(READY)         ## speed and memory; OTHER="FILE.py ..." measures other implementations too
	mkdir -p docs/results
	$(BIN)/python benchmarks/speed.py $(QUICK) --table docs/results/speed.md
	$(BIN)/python benchmarks/data_path.py
ifdef OTHER
	$(BIN)/python benchmarks/against.py $(QUICK) $(addprefix --other ,$(OTHER)) --table docs/results/against.md
endif

docs: $(READY)          ## the pages of docs/reference from the code, and all as a site in build/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[docs]'
	PYTHONPATH=. $(BIN)/python -m tools.reference
	$(BIN)/python -m mkdocs build --strict

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(READY)

# flwr and torch are resolved in one command, with every version pinned.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[simulation,phantom,reader,compiled,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
