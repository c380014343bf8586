"""Benchmarks on a GPU: `python -m bench.gpu`, or all that is to be done on a new one: `bench/gpu.sh`."""
