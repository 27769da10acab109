"""Benchmarks: `python -m bench`. See README.md in this folder."""
