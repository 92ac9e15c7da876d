"""Streaming peers: ReKV, InfiniPot-V, StreamMem, LiveVLM, StreamingVLM, DSCache."""
