"""HERMES (arXiv 2601.14724)."""
