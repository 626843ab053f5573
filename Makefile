# Each target makes .venv and installs into it first: again only when what to install changes, or the
# C++ in native/, of which only what changed is compiled.
#   make demo     the main job on real images, from a trained network to a table
#   make test     all that has to pass: lint, format, types, tests; with chromium and chromium-driver
#                 (Debian's packages) also the report in a browser
#   make quick    in a minute: lint, types, the tests of method, graph, counting and engine
#   make docs     the documentation as a site, site/index.html, with every public function
#   make wheels   in dist/, for CPython 3.11 to 3.13 on any Linux of x86-64 since 2018; needs Docker
#   make sanitize the native engine's fuzz tests, stopping at invalid accesses and undefined behaviour,
#                 and what its kernels multiply
#   make emulate  the eight-bit kernels for AVX-512 VBMI and AMX, those instructions in software, on any
#                 machine with AVX-512 VNNI
#   make clean    remove .venv, caches and build products; data/ and runs/ stay
# Another interpreter (3.11 or later): make PYTHON=python3.12 test, after make clean.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
BUILDER := .venv/builder
INSTALLED := .venv/installed
# Tests of whole processes and of other kinds of network: not for the loop of a person at work.
WHOLE := runtime/test_process.py runtime/test_hardening.py pruning/test_any_network.py \
	graph/test_graph_breaks.py

.PHONY: help demo test quick docs wheels sanitize emulate clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(INSTALLED)
	@$(BIN)/ftwt demo

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0

quick: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0 tests/graph tests/pruning tests/runtime \
		$(addprefix --ignore tests/,$(WHOLE))

docs: $(INSTALLED)
	$(BIN)/mkdocs build --quiet --strict

# What it builds with is pinned: its own version pins the image, constraints.txt the rest.
wheels:
	@$(PYTHON) -m venv build/cibuildwheel
	@build/cibuildwheel/bin/pip install --quiet --disable-pip-version-check cibuildwheel==4.3.5
	build/cibuildwheel/bin/cibuildwheel --platform linux --output-dir dist

# Installed beside .venv, and run with what .venv holds: -S leaves out its link to src/.
sanitize: $(INSTALLED)
	@CXX=$(CXX) $(PIP) --no-build-isolation --no-deps --upgrade --target build/sanitized/site \
		--config-settings build-dir=build/sanitized/native --config-settings wheel.cmake=true \
		--config-settings install.strip=false --config-settings cmake.define.FTWT_COUNT=ON \
		--config-settings cmake.define.FTWT_SANITIZE=ON .
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		PYTHONPATH=build/sanitized/site:$(wildcard .venv/lib/python3.*/site-packages) \
		$(BIN)/python -S -m pytest --capture=sys tests/runtime/test_fuzz.py tests/runtime/test_file.py \
		tests/runtime/test_quantised.py tests/runtime/test_products.py

emulate: $(INSTALLED)
	@$(PIP) --no-build-isolation --no-deps --upgrade --target build/emulated/site \
		--config-settings build-dir=build/emulated/native --config-settings wheel.cmake=true \
		--config-settings cmake.define.FTWT_EMULATE=ON .
	PYTHONPATH=build/emulated/site:$(wildcard .venv/lib/python3.*/site-packages) \
		$(BIN)/python -S -m pytest tests/runtime/test_quantised.py tests/runtime/test_fuzz.py \
		tests/lowering/test_quantize.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A folder's own date changes with the files in it: the installation lists them.
$(INSTALLED): $(BUILDER) $(wildcard native/*) $(shell find src -type d ! -name __pycache__)
	@echo "Installing into .venv; the first time, this takes a minute or two."
	@$(PIP) --no-build-isolation --config-settings build-dir=build/native -e '.[dev]'
	@$(BIN)/python -c 'import ftwt.runtime._native' 2>/dev/null || { rm -rf build/native; \
		echo "Without the native engine: get GCC 12 or Clang 15, or later, and make clean."; }
	@touch $@

$(BUILDER): pyproject.toml constraints.txt
	@$(PYTHON) -m venv .venv
	@$(PIP) nanobind scikit-build-core cmake ninja
	@touch $@
