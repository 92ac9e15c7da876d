"""Language models of Mamba-2 layers alone."""
