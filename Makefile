# make install | demo | test | test-all | lint: each works on a fresh machine.
# TORCH=0 leaves out PyTorch, and the tests that need it, and says which.
# make test-pythons: a fresh install, and the tests, on every other Python.
# make notebooks: colabs/*.ipynb from colabs/*.py, which are what is edited.
# make docs: the site, in build/docs, with the notebooks executed.
# make dist: sdist, wheel and list of what they need, in dist and build.
# make audit: known holes and licences of all that is installed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= 1
comma := ,
TEST_EXTRAS := test$(if $(filter 1,$(TORCH)),$(comma)torch)
FILES := pyproject.toml requirements.txt constraints.txt
# Versions of everything, so that a later release breaks no install.
PIP = $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: install demo test test-all test-pythons notebooks docs dist audit lint clean

install: $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$@ -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(FILES) | $(BIN)/python
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-demo: $(FILES) | $(BIN)/python
	$(PIP) --editable ".[demo]"
	touch $@

# Byte code is made of what is imported, when it is: of all files, PyTorch's
# among them, it takes a minute and a half.
$(VENV)/.installed-test-$(TORCH): $(FILES) | $(BIN)/python
	$(PIP) --no-compile --editable ".[$(TEST_EXTRAS)]"
	touch $@

demo: $(VENV)/.installed-demo
	$(BIN)/dinojax train --config=demo --workdir=runs/demo
	$(BIN)/dinojax pca --workdir=runs/demo

# Files in two processes, the longest first: see docs/testing.md. Containers
# forbid byte code; here many processes would each make it again.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-test-$(TORCH)
	DINOJAX_TORCH=$(TORCH) $(PYTEST)

test-all: $(VENV)/.installed-test-$(TORCH)
	DINOJAX_TORCH=$(TORCH) $(PYTEST) -m ''

test-pythons:
	$(PYTHON) tests/pythons.py

notebooks: $(VENV)/.installed-test-$(TORCH)
	$(BIN)/python -m tests.colabs.notebooks

$(VENV)/.installed-docs: $(FILES) | $(BIN)/python
	$(PIP) --editable ".[docs]"
	touch $@

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs

$(VENV)/.installed-dist: Makefile | $(BIN)/python
	$(PIP) build==1.6.1 twine==7.0.0 cyclonedx-bom==7.5.0
	touch $@

# The list (an SBOM, CycloneDX) is of an environment that has the wheel alone.
dist: $(VENV)/.installed-dist
	rm -rf dist build/bdist.* build/lib build/sbom build/sbom.json
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml \
	  --mc-type library --output-reproducible --output-file build/sbom.json build/sbom

audit: $(VENV)/.installed-test-$(TORCH)
	$(BIN)/python -m pip install --quiet pip-audit==2.10.1
	$(BIN)/python tests/audit.py

lint: $(VENV)/.installed-test-$(TORCH)
	$(BIN)/ruff check .
	$(BIN)/shellcheck launch/*.sh bench/*.sh

clean:
	rm -rf $(VENV) .jax_cache
