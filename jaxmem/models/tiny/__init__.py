"""The embedded model: small, audio-visual, shipped with the package."""
