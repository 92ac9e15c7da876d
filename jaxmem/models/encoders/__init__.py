"""Encoders of pictures and sound: SigLIP, Whisper, Q-Former, and what they share."""
