"""Qwen2.5-VL, Qwen3-VL and Qwen2.5-Omni."""
