"""The main job: `python -m jaxmem.experiments.stream`."""
