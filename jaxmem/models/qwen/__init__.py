"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 and Qwen2.5-Omni."""
