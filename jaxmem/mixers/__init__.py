"""Layers with a state: token mixers that need no keys and values."""
