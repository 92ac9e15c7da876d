"""FlexMem (arXiv 2603.29252)."""
