"""Files, addresses and devices as aligned pieces of pictures and sound."""
