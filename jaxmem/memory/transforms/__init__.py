"""Memories around memories: fewer bits, and a record of what slots receive."""
