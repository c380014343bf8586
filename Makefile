# `make demo` and `make test` do all set-up themselves: an environment of their own in .venv, pinned dependencies
# (requirements.txt), the build. They need Python >= 3.10 and a C++17 compiler. Repeated, they only do what changed.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py pyproject.toml noisetilt_kernels/schemas.def $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h)

.PHONY: demo test env build sanitize bench lint clean

demo: build
	$(BIN)/noisetilt demo

test: build sanitize
	$(BIN)/pytest

env: .venv/.installed
build: .venv/.built

.venv/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "noisetilt-kernels needs Python 3.10 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	touch $@

.venv/.built: .venv/.installed $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

# The kernels alone, with the address and undefined-behaviour sanitizers.
sanitize: .venv/.installed
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-DNOISETILT_SANITIZE=ON -DNOISETILT_LIBRARY=OFF --log-level=WARNING
	$(BIN)/cmake --build build/sanitize
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure

bench: build
	$(BIN)/python -m bench

# What a reviewer would run.
lint: .venv/.built
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h')
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info noisetilt_kernels/_C*.so
