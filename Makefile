# Two commands do everything on a bare machine with Python >= 3.11:
#   make demo   environment, install, then the main job: train, compare, report
#   make test   environment, install, then every check and all fast tests
# Choose another interpreter with PYTHON=python3.12, and another package index for torch (for
# example PyTorch's index of CPU wheels, which saves gigabytes on a machine without a GPU) with
# TORCH_INDEX=URL.

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
RUN ?= relevance

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
TORCH_FLAGS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help demo tiny-base test lint fix docs install install-dev clean distclean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.installed  ## train the selector, compare it with every baseline, write the report
	$(BIN)/saccade train relevance
	$(BIN)/saccade eval $(RUN)
	$(BIN)/saccade compare $(RUN)
	$(BIN)/saccade report $(RUN)
	@echo "The report: $(CURDIR)/runs/$(RUN)/report.html"

tiny-base: $(VENV)/.installed  ## train the shipped base model anew, in two stages (over an hour)
	$(BIN)/saccade train tiny-base-vision run.name=tower
	$(BIN)/saccade train tiny-base-vision run.name=place tiny_base.start=model \
		model.name=runs/tower/model training.steps=800 tiny_base.small_share=0.5 \
		training.learning_rate=4e-3
	$(BIN)/saccade train tiny-base model.name=runs/place/model run.name=language
	$(BIN)/saccade train tiny-base model.name=runs/language/model run.name=language2 \
		training.steps=700 tiny_base.small_share=0.2 training.learning_rate=3e-3
	$(BIN)/saccade eval language2

test: $(VENV)/.installed-dev  ## style, types, import layers, and all fast tests
	$(MAKE) --no-print-directory lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.installed-dev  ## style, types and import layers only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

fix: $(VENV)/.installed-dev  ## format, and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev  ## write docs/reference anew from the code
	$(BIN)/python docs/build_reference.py

install: $(VENV)/.installed  ## environment for users
install-dev: $(VENV)/.installed-dev  ## environment for developers

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "saccade needs Python >= 3.11, but $(PYTHON) is $$($(PYTHON) -c \
	  'import platform; print(platform.python_version())' 2>/dev/null || echo missing)."; \
	  echo "Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "Python cannot make a virtual environment; on Debian and Ubuntu install python3-venv."; \
	  exit 2; }
	@touch $@

# torch goes first and alone: any other requirement resolved earlier would choose its build.
$(VENV)/.torch: constraints.txt | $(VENV)/.created
	@echo "Installing $(TORCH) into $(VENV) (the largest download) ..."
	@$(PIP) $(TORCH_FLAGS) $(TORCH)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing saccade into $(VENV) ..."
	@$(PIP) -e '.[train,cloud,tui]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing saccade and its development tools into $(VENV) ..."
	@$(PIP) -e '.[train,rl,cloud,dev]'
	@touch $@ $(VENV)/.installed

clean:  ## remove caches and build products; runs and the environment stay
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests docs benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove the environment too
	rm -rf $(VENV)
