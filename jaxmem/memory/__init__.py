"""Memories: what a stream keeps of its past."""
