# Needs python3 (3.11 or newer) and make; everything else is installed into .venv.
#
#   make demo     transform a small vision transformer, export it to ONNX and verify the file
#   make check    what CI runs: lint, types, test

PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
# What `make test-versions` runs: all that meets torch, transformers and ONNX itself.
VERSION_TESTS ?= $(addprefix tests/,artifact costs examples export finding graph passes planning rewriting running sources surrogates tracing zoo test_pipeline.py test_torch.py)
# And what it needs beside the extra `zoo`.
TEST_TOOLS := pytest pytest-xdist hypothesis scikit-learn

BIN := .venv/bin

# Where it is set, as in images of containers, each of the hundreds of processes that tests start compiles all that it
# imports anew: 14 instead of 6 CPU seconds for what `repl-fx train` imports.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help .venv demo test test-all test-versions wheel lint types check docs bench zoo ecosystem mutants clean
.DELETE_ON_ERROR:

help:
	@echo "make demo | test | test-all | test-versions | wheel | lint | types | check | docs | bench | zoo | ecosystem | mutants | clean | .venv"

# A virtual environment: .venv, .venv-oldest or .venv-newest. The stamp is written last, so that one that was interrupted
# is made anew.
.venv/.created .venv-oldest/.created .venv-newest/.created: %/.created:
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.11 or newer, or give PYTHON=path" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"error: repl-fx needs Python 3.11 or newer and {sys.executable} is {v[0]}.{v[1]}; give PYTHON=path") if v < (3, 11) else None'
	$(PYTHON) -m venv --clear $*
	@touch $@

# One stamp for each extra: installed once, and again when what is to be installed changes. Python compiles the modules that
# it imports, which are few of those that are installed.
.venv/.installed-%: pyproject.toml constraints.txt .venv/.created
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -q -c constraints.txt -e '.[$*]'
	@touch $@

# The environment to develop in.
.venv: .venv/.installed-dev

demo: .venv/.installed-zoo
	$(BIN)/repl-fx transform examples/vit.py -o build/demo --force
	$(BIN)/repl-fx export build/demo

# All tests but those marked `slow`, less than a tenth of them; `test-all` runs these too. One thread a worker: with more,
# the workers fight over the cores and every test gets slower.
test: override PYTEST_ARGS += -m "not slow"
test test-all: .venv/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

# The engine and the examples on the oldest releases that pyproject.toml admits, and on what pip gives today where nothing
# is pinned; each in an environment of its own. PYTHON chooses the interpreter of one that is not made yet.
test-versions: test-oldest test-newest

.venv-oldest/.installed: pyproject.toml .venv-oldest/.created
	sed -n '/^dependencies/,/^zoo/p' pyproject.toml | grep -oE '[A-Za-z0-9-]+>=[0-9.]+' | sed 's/>=/==/' > $(@D)/oldest.txt
	.venv-oldest/bin/python -m pip install --disable-pip-version-check --no-compile -q -c $(@D)/oldest.txt -e '.[zoo]' $(TEST_TOOLS)
	# The oldest networkx has escapes that Python warns of where it compiles them, and warnings are errors in tests.
	.venv-oldest/bin/python -m compileall -q .venv-oldest/lib/python*/site-packages/networkx >/dev/null
	@touch $@

# Over the packages of .venv, where one Python runs both: what is newer is installed before them. Whatever is newer than the
# last time, too.
.PHONY: .venv-newest/.installed
.venv-newest/.created: .venv/.installed-dev
.venv-newest/.installed: .venv-newest/.created
	@for packages in .venv/lib/python*/site-packages; do \
		own=.venv-newest/$${packages#.venv/}; [ ! -d $$own ] || echo "$(CURDIR)/$$packages" > $$own/below.pth; done
	.venv-newest/bin/python -m pip install --disable-pip-version-check --no-compile -q --upgrade --upgrade-strategy eager -e '.[zoo]' $(TEST_TOOLS)

test-%: .venv-%/.installed
	.venv-$*/bin/python -m pip list --disable-pip-version-check | grep -E '^(torch|torchvision|transformers|timm|onnx|numpy) '
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS) $(VERSION_TESTS)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.installed-dev
	$(BIN)/mypy

check: lint types test-all

# Any warning, such as of a link that leads nowhere, is an error. The site opens from disk: build/site/index.html
docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# A script that needs a device that is not there says so and exits with 2.
bench: .venv/.installed-dev
	@set -e; for script in $(filter-out benchmarks/zoo.py benchmarks/accuracy.py benchmarks/attack.py benchmarks/gpu.py benchmarks/gpu_carry.py benchmarks/gpu_report.py benchmarks/ecosystem.py benchmarks/mutants.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python -m "benchmarks.$$(basename "$$script" .py)" || test $$? -eq 2; done

# Every model of the zoo through every stage, and docs/zoo.md from it; hours. An interrupted run goes on where it stopped.
zoo: .venv/.installed-dev .venv/.installed-bench
	$(BIN)/python -m benchmarks.zoo
	$(BIN)/python -m benchmarks.zoo --report-only
	$(BIN)/python -m benchmarks.zoo --sizes
	$(BIN)/python -m benchmarks.zoo --sizes --report-only
	$(BIN)/python -m benchmarks.zoo --data
	$(BIN)/python -m benchmarks.zoo --data --report-only

# What people do with a model, on each form of a result; a quarter of an hour.
ecosystem: .venv/.installed-dev .venv/.installed-bench
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ecosystem --docs docs

# How many small faults the tests notice; hours on one core. An interrupted run goes on where it stopped.
mutants: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutants --workers $(WORKERS)

# dist/*.whl, to install with pip anywhere.
wheel: .venv/.installed-dev
	rm -rf dist
	$(BIN)/python -m build --wheel

clean:
	rm -rf .venv .venv-oldest .venv-newest build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
