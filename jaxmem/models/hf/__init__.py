"""Checkpoints of Hugging Face: configs, weights, chat templates, preprocessing."""
