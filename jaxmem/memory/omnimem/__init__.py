"""OmniMem (arXiv 2606.07577), its budgets and their calibration."""
