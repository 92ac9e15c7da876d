"""LLaVA-OneVision and LLaVA-Video."""
