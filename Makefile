# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
STAMP := $(VENV)/.installed

export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export GX_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo demo-real test test-slow lint docs lock bench bench-recovery bench-gate bench-engine bench-ledger bench-operations fuzz clean

$(STAMP): requirements.lock pyproject.toml
	test -d $(VENV) || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/python -c 'import sys; v = sys.version_info[:2]; assert (3, 11) <= v < (3, 14), f"expected Python 3.11 to 3.13, got {v}: make PYTHON=..."'
	$(BIN)/pip install --quiet --quiet --disable-pip-version-check $(TORCH) -r requirements.lock
	$(BIN)/pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python scripts/check_versions.py requirements.lock $(TORCH)
	touch $@

demo: $(STAMP)  ## the whole pipeline on the tiny family, in ./demo
	$(BIN)/safegene demo demo

demo-real: $(STAMP)  ## the same on SmolLM2-135M, in ./demo-real (needs SAFEGENE_TEST_DATA; one to two hours on 2 cores)
	$(BIN)/python -m examples.smollm2.prepare demo-real
	$(BIN)/python -m studies.smollm2.run demo-real

test: $(STAMP)  ## everything that does not wait for a schedule, a kill or a server
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(STAMP)  ## served schedules, kills, the real S3 server (SAFEGENE_TEST_S3), the demo in a clean clone
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --durations=10

lint: $(STAMP)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/mypy && $(BIN)/lint-imports --no-cache

docs: $(STAMP)  ## the documentation, into site/: strictly, and without network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock:  ## needs uv; torch stays out of the lock, since its CPU and CUDA builds differ
	uv pip compile --python-version 3.11 --extra dev --no-emit-package torch --no-header --no-annotate pyproject.toml -o requirements.lock
	! grep -iE '^(nvidia|triton|cuda)' requirements.lock

bench: $(STAMP)
	$(BIN)/python -m benchmarks.pipeline.run

bench-engine: $(STAMP)  ## extraction, merge and memory beside mergekit and PEFT
	$(BIN)/python -m benchmarks.engine.run

bench-ledger: $(STAMP)  ## the ledger: killed promoters (on S3 too with SAFEGENE_TEST_S3), a long chain, an audit; minutes
	$(BIN)/python -m benchmarks.ledger.run

bench-operations: $(STAMP)  ## the report of 60 targets; its accessibility with SAFEGENE_TEST_AXE and a Chromium; minutes
	$(BIN)/python -m benchmarks.operations.run

bench-gate: $(STAMP)  ## the gate: simulated errors and costs, A/A, injected faults
	$(BIN)/python -m studies.gate.run

bench-recovery: $(STAMP)  ## every repair method on the tiny family, then on SmolLM2 (hours on 2 cores; goes on where it stopped)
	$(BIN)/python -m studies.recovery.run
	$(BIN)/python -m studies.smollm2.recovery

fuzz: $(STAMP)  ## mutated input for every parser, for FUZZ_SECONDS (two hours); goes on counting where it stopped
	$(BIN)/python -m scripts.fuzz --seconds $(or $(FUZZ_SECONDS),7200) --state .fuzz.json

clean:
	rm -rf demo reports dist
