"""jaxmem: a memory of fixed size for video and audio language models, in JAX."""

__version__ = "0.1.0"
