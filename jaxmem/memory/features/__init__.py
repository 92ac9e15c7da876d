"""Memories of encoder features, before the decoder: MovieChat, MA-LMM, and audio beside them."""
