"""video-SALMONN 2+."""
