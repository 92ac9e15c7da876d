"""Banks: what a memory evicts, in device or host memory, and how questions bring it back."""
