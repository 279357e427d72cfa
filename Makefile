# make install | demo | test | test-all | lint: each works on a fresh machine.
# TORCH=0 leaves out PyTorch, and the tests that need it, and says which.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= 1
comma := ,
TEST_EXTRAS := test$(if $(filter 1,$(TORCH)),$(comma)torch)
FILES := pyproject.toml requirements.txt

.PHONY: install demo test test-all lint clean

install: $(VENV)/.installed

$(VENV)/.installed: $(FILES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-demo: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	touch $@

$(VENV)/.installed-test-$(TORCH): $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[$(TEST_EXTRAS)]"
	touch $@

demo: $(VENV)/.installed-demo
	$(BIN)/python -m dinojax.main --config=configs/demo.py --workdir=runs/demo
	$(BIN)/python -m dinojax.pca --workdir=runs/demo

test: $(VENV)/.installed-test-$(TORCH)
	DINOJAX_TORCH=$(TORCH) $(BIN)/python -m pytest

test-all: $(VENV)/.installed-test-$(TORCH)
	DINOJAX_TORCH=$(TORCH) $(BIN)/python -m pytest -m ''

lint: $(VENV)/.installed-test-$(TORCH)
	$(BIN)/ruff check .
	$(BIN)/shellcheck launch/*.sh bench/*.sh

clean:
	rm -rf $(VENV) .jax_cache
