"""Flash-VStream (arXiv 2406.08085) and its Qwen version (arXiv 2506.23825)."""
