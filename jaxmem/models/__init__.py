"""Decoders, encoders and the models made of them."""
