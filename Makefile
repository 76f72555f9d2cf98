# .ci/setup runs on any Python 3 and itself looks for one that fits. The interpreter is tried,
# not only looked up: a pyenv shim may exist without a Python behind it.
runs = $(if $(1),$(shell $(1) -c 'print("$(1)")' 2>/dev/null))
python = $(or $(call runs,.venv/bin/python),$(call runs,python3),$(call runs,python3.13),$(call \
	runs,python3.12),$(call runs,python3.11),$(call runs,$(PYTHON)),$(error Python 3.11 to 3.13 is \
	needed. Debian or Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.12))
setup = @$(python) .ci/setup

.DEFAULT_GOAL := help
.PHONY: help setup demo ui test test-long test-crash lint lock docs clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

setup:  ## build .venv, if it is missing or stale (PYTHON=python3.12 chooses the interpreter)
	$(setup)

demo: setup  ## fetch sample prices, then train and score on them
	.venv/bin/quant fetch pse
	.venv/bin/quant demo

ui: setup  ## open the page
	.venv/bin/quant ui

test: lint  ## lint, then run the tests
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long"

test-long: setup  ## run the tests that take minutes each: day by day in all cadences, 60 as-ofs
	QUANT_THOROUGH=1 .venv/bin/python -m pytest -n 2 -m "long"
	QUANT_THOROUGH=1 .venv/bin/python -m pytest -n 2 quant_pipeline_tests/test_ingest.py

EVERY ?= 1
test-crash: setup  ## kill, fill, cut and flip at every single write (hours; EVERY=5: half an hour)
	QUANT_CRASH_EVERY=$(EVERY) QUANT_CROWD_SECONDS=30 .venv/bin/python -m pytest -n 2 -s \
		quant_pipeline_tests/test_crash.py quant_pipeline_tests/test_damage.py \
		quant_pipeline_tests/test_crowd.py

lint: setup  ## check style, types and layers
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy quant_pipeline
	.venv/bin/lint-imports

lock:  ## recompile requirements.lock (ARGS=--upgrade takes newer versions)
	$(setup) pip compile pyproject.toml --group dev --universal --generate-hashes \
		--no-emit-index-url --no-header --python-version 3.11 -o requirements.lock --quiet $(ARGS)

docs: setup  ## write the table of features in docs/features.md
	.venv/bin/python -m quant_pipeline.faces.features docs/features.md

clean:  ## remove .venv and everything cached or built; keeps data and models
	rm -rf .venv .pytest_cache .hypothesis .ruff_cache .mypy_cache .import_linter_cache dist build
	rm -rf -- *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
