#!/usr/bin/env bash
# Checks and measurements on an NVIDIA GPU. The most important facts come first, each is written down at once.
#
#   bench/gpu.sh prepare    builds what the runs need, in build/carried; needs nvcc, but no GPU
#   bench/gpu.sh cuda       the CUDA library: bits, equal repeats, times, barriers, streams; at most 240 s
#   bench/gpu.sh sanitize   the CUDA library under compute-sanitizer, then some of tests/gpu; at most 200 s
#   bench/gpu.sh clusters   the CUDA library with thread block clusters, for FLUX's latents; at most 120 s
#   bench/gpu.sh triton     the Triton kernels: bits and times of FLUX's latents; at most 120 s
#   bench/gpu.sh full       prepare, all of the above, all tests and benchmarks, tuning; about an hour
#
# On a machine with a GPU, `bench/gpu.sh full` is all there is to do.
#
# On a machine that is lent for minutes, perform the four short runs, each in one call:
#   1. On any x86-64 Linux machine with nvcc, run `bench/gpu.sh prepare`. It takes minutes.
#   2. Take the sources and the folder build/carried to the machine with the GPU: one folder beside what git
#      knows, together less than 64 MiB. Nothing is built or downloaded there, and no reference is computed.
#      It needs Python 3.10 or newer, a CUDA build of torch 2.11 or newer, numpy, scipy and safetensors; for
#      `sanitize` also pytest and compute-sanitizer, for `triton` a C compiler and Python's headers. If the
#      libraries do not load there, they are built there once, which needs nvcc, and takes a minute or two of
#      that run.
#   3. Call `OUT=folder bench/gpu.sh cuda` there, allow it 250 s, then the same with the other three.
#   4. Bring the folder back. It has at most these files, none larger than 16 MiB:
#        summary.txt    a line for each fact, the same as on the screen
#        results.json   facts, steps and measured times
#        tables.md      the times as tables
#        logs.tar.gz    output of the steps
#        running.log    output of a step that was interrupted
#      `full` also writes launch_table.json there, and its benchmarks into bench/results.
#
# A run can be killed at any moment: the files then hold what was found so far. Each step is a process with a
# time limit. After a step that fails or never ends the next one runs. The exit code is 0 if all succeeded.
#
# PYTHON: the interpreter (default: python3). OUT: the folder for the results (default: build/gpu).
# TORCH_CUDA_ARCH_LIST: what `prepare` builds for (default: this machine's GPU, or 9.0 if it has none).
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ ${1:-} == prepare ]]; then
  exec "${PYTHON:-python3}" -m bench.gpu.prepare "${@:2}"
fi
exec "${PYTHON:-python3}" -m bench.gpu.run "$@"
