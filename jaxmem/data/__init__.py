"""Real media, features, and the synthetic world."""
