"""Memories of frames: what the laws of compiled steps, for a CPU and for GPUs, leave out."""

REBUILT = {"moviechat", "ma_lmm", "memory_vla", "simple_stream"}
"""They merge or shift frames: their whole (small) arrays, of no layers, are made anew.

On a CPU and on a GPU alike: `experiments/step_aot` holds the copies of both back ends of a GPU.
"""
