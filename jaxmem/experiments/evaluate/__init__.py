"""Memories on held-out streams: `python -m jaxmem.experiments.evaluate`."""
