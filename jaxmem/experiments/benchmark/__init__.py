"""Bytes, prices and ratios of time: `python -m jaxmem.experiments.benchmark`."""
