"""Benchmarks: `python -m bench [pytest options]`, or `make bench`."""
