"""Memories of encoder features, before the decoder: MovieChat, MA-LMM, and sound beside them."""
