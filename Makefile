# Each target sets up .venv from nothing; a stamp keeps it until what pip reads changes.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.stylepairs-installed
# torch first and by itself, so that the index in use decides which build (CPU or CUDA) everything else then finds.
TORCH ?= torch==2.13.0
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint .ci/constraints.txt
OUT ?= out/demo

.PHONY: test demo install lint format types unit slow clean

test: lint types unit

install: $(STAMP)

$(STAMP): pyproject.toml .ci/constraints.txt $(wildcard */__init__.py)
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) setuptools wheel
	$(PIP) --no-build-isolation --editable ".[test,perceptual,export,page,video,latent,storage]"
	# What pip would do with one processor; libraries' own tests are never imported.
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib || true
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy does not follow editable installs that rename folders, so it gets a tree of links under the import names. Recipes'
# and benchmarks' scripts import their neighbours by plain name, so each folder of recipes is looked at by itself.
types: $(STAMP)
	@mkdir -p build/types/stylepairs
	@for folder in kernels datagen i2i; do ln -sfn ../../../$$folder build/types/stylepairs/$$folder; done
	MYPYPATH=build/types $(BIN)/mypy -p stylepairs
	MYPYPATH=build/types:benchmarks:benchmarks/speed $(BIN)/mypy benchmarks
	@for folder in recipes/*/; do \
		if ls $$folder*.py > /dev/null 2>&1; then MYPYPATH=build/types:$$folder $(BIN)/mypy $$folder*.py || exit 1; fi; done

# One thread a test process: sums split over threads round differently, and processes would fight for the cores. What is
# compiled is kept, whatever the environment says: tests start processes by the hundred.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile

unit: $(STAMP)
	$(PYTEST)

# Single tests of minutes: whole files would leave one process without work at the end.
slow: $(STAMP)
	$(PYTEST) -m slow --dist worksteal

demo: $(STAMP)
	$(BIN)/python recipes/demo/demo.py --out $(OUT)

clean:
	rm -rf $(VENV) build out .mypy_cache .pytest_cache .ruff_cache .hypothesis
