# Every target does its own set-up, in .venv, .tl4 and .lowest. Stamps are written last: without one, set-up starts from nothing.
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
# The second leg: a later TransformerLens, without HookedTransformer, laid over the one that constraints.txt pins.
TL4_VERSION := 4.3.0
# The third leg: the oldest packages that pyproject.toml admits, laid over the same environment.
OLDEST := constraints-lowest.txt

BIN := .venv/bin
VENV := .venv/.ready
TL4 := .tl4/.ready-$(TL4_VERSION)
LOWEST := .lowest/.ready
# Bytecode of what is imported is written at its first import; that of all packages would take half a minute.
PIP := $(BIN)/python -m pip install -qq --no-compile
# One thread per worker: two workers with two threads each would spend their time waiting for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=25 $(ARGS)

# Makes all counts of `make fuzz` so many times as large.
TIMES ?= 1

.PHONY: demo docs docs-serve families fuzz soak test test-3.9 test-4 test-attack test-lowest lint notebooks release-check setup clean
.NOTPARALLEL:

demo: $(VENV)
	$(BIN)/tl-rome demo

test: test-3.9 test-4 test-lowest test-attack

test-3.9: $(VENV)
	TL_ROME_LEG=3.9 PYTHONPATH= $(PYTEST)

# As users have it: without the checks of annotations, so with the attacks.
test-4: $(VENV) $(TL4)
	TL_ROME_LEG=4 PYTHONPATH="$(CURDIR)/.tl4" $(PYTEST) --jaxtyping-packages=

# The plugin is that of the newer platformdirs beneath.
test-lowest: $(VENV) $(LOWEST)
	TL_ROME_LEG=lowest PYTHONPATH="$(CURDIR)/.lowest" $(PYTEST) -p no:platformdirs

# Attacks are on the library as users have it: without the checks of annotations. Those of the other leg are in test-4.
test-attack: $(VENV)
	TL_ROME_LEG=3.9 PYTHONPATH= $(PYTEST) --jaxtyping-packages= tests/attack

fuzz: $(VENV)
	TL_ROME_LEG=3.9 TL_ROME_FUZZ=$(TIMES) PYTHONPATH= $(PYTEST) --hypothesis-profile=fuzz --jaxtyping-packages= tests/attack

soak: $(VENV)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python benchmarks/soak.py

lint: $(VENV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/vulture

# One process, since it writes one file.
families: $(VENV) $(TL4)
	TL_ROME_WRITE_FAMILIES=1 TL_ROME_LEG=3.9 PYTHONPATH= $(BIN)/python -m pytest tests/test_families.py
	TL_ROME_WRITE_FAMILIES=1 TL_ROME_LEG=4 PYTHONPATH="$(CURDIR)/.tl4" $(BIN)/python -m pytest tests/test_families.py

# The site, into site/; any warning is an error. docs-serve shows it, and follows what is written.
docs: $(VENV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(VENV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

notebooks: $(VENV)
	$(BIN)/jupyter-execute --inplace notebooks/*.ipynb

release-check: $(VENV)
	.ci/release

setup: $(VENV) $(TL4) $(LOWEST)

$(VENV): pyproject.toml constraints.txt
	@echo "Setting up .venv: a few minutes the first time."
	test -e $@ || $(PYTHON) -m venv --clear .venv
	@rm -f $@
	$(PIP) -e '.[dev]' -c constraints.txt
	@touch $@

$(TL4): | $(VENV)
	rm -rf .tl4
	$(PIP) --no-deps --target .tl4 transformer-lens==$(TL4_VERSION)
	@touch $@

$(LOWEST): $(OLDEST) | $(VENV)
	rm -rf .lowest
	$(PIP) --no-deps --target .lowest -r $(OLDEST)
	@touch $@

clean:
	rm -rf .venv .tl4 .lowest .pytest_cache .ruff_cache build dist site
