# Every target sets up .venv by itself; `make` alone lists them.
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help

BIN := .venv/bin
LOCKS := requirements/lock.txt requirements/learn2learn.txt requirements/learn2learn-build.txt
# The stamp's name holds a checksum of what was installed, so that a change installs again whatever the files' dates.
STAMP := .venv/.stamp-$(shell cat $(LOCKS) pyproject.toml requirements/setup.sh | cksum | tr ' ' '-')
# Processes that test at once; each computes on one thread.
WORKERS ?= 2

export PYTHON

.PHONY: help setup notebooks book test serve lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Create or update .venv (PYTHON=... chooses the interpreter: CPython 3.11 or 3.12)

$(STAMP):
	@sh requirements/setup.sh $@

notebooks: $(STAMP) ## Generate each chapter's .ipynb from its .md source
	@$(BIN)/python book/_press notebooks

book: $(STAMP) ## Execute the chapters and build the HTML into _build/html
	@$(BIN)/python book/_press build

test: $(STAMP) ## Run the tests, the style checks among them, and every chapter at its smoke preset
	@OMP_NUM_THREADS=1 METABOOK_PRESET=smoke $(BIN)/python -m pytest --nbmake --nbmake-timeout=300 \
		--numprocesses=$(WORKERS) --dist=worksteal --quiet tests book

serve: $(STAMP) ## Show the built book in a browser
	@$(BIN)/python book/_press serve

lock: $(STAMP) ## Resolve requirements/lock.in anew and write requirements/lock.txt
	@$(BIN)/python requirements/lock.py

clean: ## Delete everything that was built (the environment is .venv: rm -rf it to start anew)
	rm -rf _build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
