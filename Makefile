# Everything here makes the virtual environments that it needs, from the pinned lists in requirements/.
PYTHON ?= python3
LATEST := 2.60.0
# The version of the report that started this project, and the oldest supported one.
OLDER := 2.55.1 2.50.1

VENV := .venv

# Where Python may not keep what it compiles, each process of each test would compile it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-all test-nightly check unit integration slow compat acceptance lint types bench lock clean

help:  ## What there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.ready  ## A real sweep without and with MemGuard, side by side (two minutes, three to six the first time)
	$(VENV)/bin/python -m examples.demo

test: static unit integration  ## All quick checks and tests, on the latest Ray (ten minutes with the set-up)

test-all: slow compat  ## What `make test` leaves out: fault injection, long sweeps, and older Rays

check: static unit  ## The quick part of the tests

# Side by side, because each uses one core.
.PHONY: static
static: $(VENV)/.ready
	@$(MAKE) --no-print-directory --jobs 2 --output-sync lint types

# Without --quiet, with which mkdocs would not count warnings.
lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(MKDOCS)

types: $(VENV)/.ready
	$(VENV)/bin/mypy

# Some files take as long as all others together, so the process that is done first takes tests from the other.
PYTEST := pytest -q --numprocesses 2 --dist worksteal
# Half of an integration test is waiting, for a small Ray cluster above all: three of them keep two cores busy.
THREE := $(PYTEST) --numprocesses 3
# These run whole Ray clusters on a machine that may be busy; what passed only at the second try is listed (RERUN).
INTEGRATION := --reruns 1 -raR --durations 15 tests/integration

unit: $(VENV)/.ready
	$(VENV)/bin/$(PYTEST) tests/unit

# What measures the whole machine runs one by one.
QUICK := not slow and not alone

integration: $(VENV)/.ready  ## The quick integration tests on the latest Ray
	$(VENV)/bin/$(THREE) $(INTEGRATION) -m "$(QUICK)"

slow: $(VENV)/.ready  ## The other integration tests, and what must hold in real sweeps in small, on the latest Ray
	$(VENV)/bin/$(THREE) $(INTEGRATION) tests/acceptance -m "slow and not alone"
	$(VENV)/bin/pytest -q $(INTEGRATION) -m alone

# In a recipe, so that a parallel make has both environments before it tests.
compat: older-environments  ## The quick integration tests on older Rays
	@$(MAKE) --no-print-directory --jobs 1 $(OLDER:%=compat-%)

# Side by side, because pip uses one core.
.PHONY: older-environments
older-environments:
	@$(MAKE) --no-print-directory --jobs 2 $(OLDER:%=.venv-ray-%/.ready)

compat-%: .venv-ray-%/.ready $(VENV)/.ready
	ANOTHER_RAY_PYTHON=$(CURDIR)/$(VENV)/bin/python .venv-ray-$*/bin/$(THREE) $(INTEGRATION) \
	  -m "$(QUICK) and not latest_only"

test-nightly: $(OLDER:%=nightly-%)  ## What `make test-all` leaves out: all integration tests on older Rays

nightly-%: .venv-ray-%/.ready $(VENV)/.ready
	ANOTHER_RAY_PYTHON=$(CURDIR)/$(VENV)/bin/python .venv-ray-$*/bin/$(THREE) $(INTEGRATION) \
	  -m "slow and not alone and not latest_only"
	.venv-ray-$*/bin/pytest -q $(INTEGRATION) -m "alone and not latest_only"

acceptance: $(VENV)/.ready  ## What must hold in real sweeps, at full size: kills, planted leaks, … (half a day)
	$(VENV)/bin/python -m tests.acceptance all

bench: $(VENV)/.ready  ## All benchmarks (the better part of a day)
	$(VENV)/bin/python -m benchmarks all

lock:  ## Pin anew what is installed (needs uv)
	for version in $(LATEST) $(OLDER); do \
	  echo "ray[tune]==$$version" | \
	    uv pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header \
	      --constraint - --extra dev --extra docs --no-emit-package ray-tune-memguard \
	      --output-file requirements/dev-ray-$$version.txt pyproject.toml ; \
	done

clean:  ## Remove the environments and what the demo, the site and dist wrote
	rm -rf .venv .venv-* demo-output site build dist

$(VENV)/.ready: requirements/dev-ray-$(LATEST).txt pyproject.toml
	$(call make-venv,$(VENV),$<)

.venv-ray-%/.ready: requirements/dev-ray-%.txt pyproject.toml
	$(call make-venv,.venv-ray-$*,$<)

.PRECIOUS: .venv-ray-%/.ready

# What a sweep imports, so that the first one after the set-up takes no longer than the next. pip would compile all.
COMPILED := ray numpy pandas pyarrow

define make-venv
	@echo "Setting up $(1) from $(2) (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed, this is " + sys.version)'
	@$(PYTHON) -m venv --clear $(1)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: --requirement $(2)
	@cd $(1)/lib/python3*/site-packages && $(abspath $(1))/bin/python -m compileall -q -j 0 $(COMPILED)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
endef

# The address of the repository, which only whoever publishes it knows; links on PyPI and on the site need it.
REPOSITORY_URL ?=
REVISION ?= HEAD
export REPOSITORY_URL
# mkdocs-material announces the next mkdocs at each build.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict
PYTHONS := 3.10 3.12 3.13

.PHONY: docs coverage pythons lowest dist

docs: $(VENV)/.ready  ## The documentation site, in site/
	$(MKDOCS)

coverage: $(VENV)/.ready  ## Which lines the unit tests run; fails below the floor in pyproject.toml
	$(VENV)/bin/$(PYTEST) --cov --cov-report term tests/unit

pythons: $(PYTHONS:%=python-%)  ## The unit tests on the other Pythons (needs uv)

python-%:
	PYENV_VERSION=$* uv venv --quiet --clear --python $* .venv-python-$*
	uv pip install --quiet --python .venv-python-$* --only-binary :all: --requirement requirements/dev-ray-$(LATEST).txt
	uv pip install --quiet --python .venv-python-$* --no-deps --editable .
	.venv-python-$*/bin/python -m $(PYTEST) tests/unit

lowest:  ## The unit tests with the lowest version of each dependency, on Python 3.10 (needs uv)
	PYENV_VERSION=3.10 uv venv --quiet --clear --python 3.10 .venv-lowest
	uv pip install --quiet --python .venv-lowest --only-binary :all: --resolution lowest-direct \
	  --requirement pyproject.toml --extra all
	uv pip install --quiet --python .venv-lowest pytest pytest-timeout pytest-xdist hypothesis pympler tomli \
	  pydantic 'moto[s3]' flask flask-cors
	uv pip install --quiet --python .venv-lowest --no-deps --editable .
	.venv-lowest/bin/python -m $(PYTEST) tests/unit

dist:  ## Wheel and sdist of the last commit, checked, in dist/ (needs uv; REPOSITORY_URL makes links absolute)
	rm -rf build/source dist
	mkdir -p build/source
	git archive HEAD | tar --extract --directory build/source
	$(if $(REPOSITORY_URL),$(PYTHON) tools/repository_links.py $(REPOSITORY_URL) $(REVISION) build/source)
	uvx --from build pyproject-build --installer uv --outdir dist build/source
	uvx twine check --strict dist/*
