"""Benchmarks on a GPU: `python -m bench.gpu`. Build, tests and benchmarks on a new GPU: `bench/gpu.sh`."""
