# Everything runs in .venv, made on first use from requirements.lock.
# Needed beforehand: python 3.11 or newer (with venv), git and make.

PYTHON ?= python3
PYTEST_ARGS ?=
TORCH ?= torch==2.13.0
CUPY ?= cupy-cuda12x==14.2.0
AXE_VERSION ?= 4.10.3
NVRTC ?= nvidia-cuda-nvrtc-cu12==12.9.86
LOCK_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV_VENV := build/uv
NVRTC_VENV := build/nvrtc

AXE := build/axe/axe.min.js

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test fuzz docs docs-links test-docs notebooks test-torch test-nvrtc pytest lint format types lock badge support-table clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "make -C benchmarks  list the benchmarks and figures"

demo: $(READY) ## run the demo
	$(BIN)/refmmr demo

test: lint types pytest ## lint, check the types and run the tests

# One thread per process: pytest already runs one process per core, and the tests'
# matrices are small. Agg: no test may need a display.
pytest: export OPENBLAS_NUM_THREADS = 1
pytest: export OMP_NUM_THREADS = 1
pytest: export MPLBACKEND = Agg
pytest: $(READY) ## run the tests, then those of tests/unit on Numba (PYTEST_ARGS="-k name" picks some)
	$(BIN)/pytest -n 2 --dist worksteal $(PYTEST_ARGS)
	$(if $(PYTEST_ARGS),,REFMMR_BACKEND=numba $(BIN)/pytest -n 2 --dist worksteal tests/unit)

CASES ?= 1000
fuzz: export OPENBLAS_NUM_THREADS = 1
fuzz: export REFMMR_FUZZ_CASES = $(CASES)
fuzz: $(READY) ## certify CASES new random and hostile networks, judged in rational arithmetic
	$(BIN)/pytest -n 2 tests/properties/test_certificates_fuzz.py

test-torch: export MPLBACKEND = Agg
test-torch: $(VENV)/.torch-ready ## install PyTorch into .venv and run the tests that need it
	$(BIN)/pytest -m torch $(PYTEST_ARGS)

# In an environment of its own: with CuPy in .venv the tests of "not installed" would not run.
test-nvrtc: $(NVRTC_VENV)/.ready ## compile the CUDA source with NVRTC, no GPU needed
	$(NVRTC_VENV)/bin/pytest tests/optional/test_nvrtc.py tests/optional/test_cupy_api.py

lint: $(READY) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## fix what ruff can fix, then format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## check the types
	$(BIN)/mypy

# One process for each notebook, with one thread: the outputs are those of a small machine.
notebooks: export OPENBLAS_NUM_THREADS = 1
notebooks: export OMP_NUM_THREADS = 1
notebooks: export IPYTHONDIR = $(CURDIR)/build/ipython
notebooks: $(READY) ## write the .ipynb beside each notebook's Markdown, and run them
	@mkdir -p $(IPYTHONDIR)/profile_default
	@cp docs/_ext/ipython_kernel_config.py $(IPYTHONDIR)/profile_default
	$(BIN)/jupytext --quiet --update --to ipynb notebooks/*.md
	$(BIN)/jupyter execute --inplace --timeout=300 notebooks/*.ipynb
	$(BIN)/python docs/_ext/shrink_pictures.py notebooks/*.ipynb

# Notebooks run with the threads of one process each; a warning is an error.
docs: export OPENBLAS_NUM_THREADS = 1
docs: export OMP_NUM_THREADS = 1
docs: $(READY) ## build the documentation into build/html, running all notebooks
	@rm -rf build/html docs/reference/api docs/tutorials
	$(BIN)/sphinx-build -q -W --keep-going docs build/html

docs-links: $(READY) ## check all links, anchors and alternative texts of the documentation in build/html
	REFMMR_DOCS_HTML=build/html $(BIN)/pytest -n 2 tests/docs/test_links.py

test-docs: export MPLBACKEND = Agg
test-docs: docs $(AXE) ## read the documentation in a browser (needs chromium), and run the .ipynb files
	REFMMR_DOCS_HTML=build/html REFMMR_AXE=$(AXE) REFMMR_NOTEBOOKS=1 \
		$(BIN)/pytest -n 2 tests/docs $(PYTEST_ARGS)

# The accessibility checker; without npm the tests that need it are skipped.
$(AXE):
	@mkdir -p $(@D)
	-cd $(@D) && npm pack --silent axe-core@$(AXE_VERSION) && tar -xzf axe-core-*.tgz --strip-components=1 package/axe.min.js

badge: $(READY) ## print Binder's badge for a README (REFMMR_REPOSITORY=https://...)
	@$(BIN)/python -c 'import sys; sys.path.insert(0, "docs/_ext"); import refmmr_docs as d; print(d.badge(d.REPOSITORY or sys.exit("error: set REFMMR_REPOSITORY to the address of the repository")))'

support-table: $(READY) ## write which kernel each backend has into docs/backends.md
	$(BIN)/python -c 'import pathlib; from refmmr.backends import support; support.write(pathlib.Path("docs/backends.md"))'

# uv respects the pins already in the file: LOCK_FLAGS=--upgrade takes the newest releases.
# "fewest" prefers one version of a package for every supported Python to one for each.
lock: $(UV_VENV)/.ready ## regenerate requirements.lock (LOCK_FLAGS=--upgrade for new versions)
	$(UV_VENV)/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 \
		--fork-strategy fewest --generate-hashes --no-emit-index-url --no-header \
		--extra docs --extra test --group build $(LOCK_FLAGS) --output-file requirements.lock pyproject.toml
	@{ echo "# Regenerate with: make lock"; cat requirements.lock; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean: ## remove .venv and everything generated
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find refmmr tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamps make later runs quick. A changed lock rebuilds .venv from nothing, so that
# packages no longer in the lock do not linger; a changed pyproject.toml only reinstalls refmmr.
$(VENV)/.locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: $(PYTHON) is not Python 3.11 or newer; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(READY): $(VENV)/.locked pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.torch-ready: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check "$(TORCH)"
	@touch $@

$(NVRTC_VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear $(NVRTC_VENV)
	$(NVRTC_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(NVRTC_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "$(CUPY)" "$(NVRTC)"
	$(NVRTC_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(UV_VENV)/.ready:
	$(PYTHON) -m venv --clear $(UV_VENV)
	$(UV_VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@
