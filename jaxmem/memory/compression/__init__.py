"""Compression of keys and values by scores: SnapKV, H2O, TOVA and others."""
