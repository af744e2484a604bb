# Everything runs in .venv, made from requirements.lock; uv is used where it is found, else it is put into .uv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV = $$(command -v uv || echo .uv/bin/uv)
export OMP_NUM_THREADS ?= 2

.PHONY: setup demo test test-slow test-multinode benchmarks check format lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@command -v uv >/dev/null || test -x .uv/bin/uv || ($(PYTHON) -m venv .uv && .uv/bin/pip install --quiet uv)
	test -x $(BIN)/python || $(UV) venv --quiet --python $$(command -v $(PYTHON)) $(VENV)
	VIRTUAL_ENV=$(VENV) $(UV) pip sync --quiet requirements.lock
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps --editable .
	touch $(STAMP)

demo: setup
	$(BIN)/python jobs/curate_webvision.py

test: check
	$(BIN)/python -m pytest -m "not multinode and not slow" --durations 25

# Whole comparisons, further searches, a tracking server, WebVision in small, more kills: half an hour on two cores.
test-slow: setup
	$(BIN)/python -m pytest -m slow

# Three nodes on one machine, on S3: minutes that go into starting processes.
test-multinode: setup
	$(BIN)/python -m pytest -m multinode

# cleanlab, a rival in the comparison, which nothing else needs.
benchmarks: setup
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --constraint requirements.lock --editable '.[benchmarks]'

check: setup
	$(BIN)/ruff check trainref_ray jobs tests benchmarks
	$(BIN)/ruff format --check trainref_ray jobs tests benchmarks
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix trainref_ray jobs tests benchmarks
	$(BIN)/ruff format trainref_ray jobs tests benchmarks

lock:
	$(UV) pip compile --quiet --universal --no-emit-index-url --extra dev --python-version 3.11 pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) .uv runs
