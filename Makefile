# `make demo` and `make test` do all set-up themselves: an environment in .venv, pinned dependencies
# (requirements*.txt), the build. They need Python >= 3.10 and a C++17 compiler. A second call rebuilds only
# what changed. `make test` runs the quick tests (a few minutes), `make test-all` the slow ones; CI runs both.
# `make check-cuda` needs nvcc, `make check-cuda-link` also 5 GB for a CUDA build of torch. No target needs a
# GPU.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py pyproject.toml noisetilt_kernels/schemas.def \
	$(wildcard csrc/build.json csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

.PHONY: demo test test-all env build sanitize check-cuda check-cuda-link check-triton docs bench lint clean

demo: build
	$(BIN)/noisetilt demo

# One process per core, each with one thread.
PYTEST := $(BIN)/pytest -n auto --dist worksteal -q

test: build
	$(PYTEST) -m "not slow"

test-all: build sanitize
	$(PYTEST) -m slow

env: .venv/.installed
build: .venv/.built

.venv/.installed: requirements.txt requirements-docs.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "noisetilt-kernels needs Python 3.10 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt \
		--requirement requirements-docs.txt
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

# Compile the CUDA kernels with nvcc and check registers, spills, fused operations and width of the loads.
check-cuda: .venv/.installed
	$(BIN)/python .ci/check_cuda_build.py

# Compile the Triton kernels for several GPUs and check the result.
check-triton: .venv/.built
	$(BIN)/python .ci/check_triton_build.py

# Build the CUDA library against a CUDA build of torch. It must load and be chosen, also without a GPU.
check-cuda-link: .venv-cuda/.installed
	.venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
		--force-reinstall .
	cd .venv-cuda && bin/noisetilt doctor && bin/python -W error -c 'import noisetilt_kernels as nt, torch; \
		status = nt.backends()["cuda"]; assert status.backend == "cuda", status; \
		assert torch._C._dispatch_has_kernel_for_dispatch_key("noisetilt::_project_", "CUDA")'

# The oldest supported torch, in its CUDA build on PyPI.
.venv-cuda/.installed:
	test -x .venv-cuda/bin/python || $(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check torch==2.11.0 setuptools \
		numpy scipy safetensors click tqdm
	touch $@

# The documentation site, into build/site.
docs: build
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: build
	$(BIN)/python -m bench

lint: .venv/.built
	$(BIN)/ruff check
	$(BIN)/python .ci/check_english.py
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(BIN)/mypy
	$(BIN)/mypy integrations/comfyui

clean:
	rm -rf .venv .venv-cuda build dist *.egg-info noisetilt_kernels/_C*.so
