"""Models with a memory as models of other people's evaluation harnesses."""
