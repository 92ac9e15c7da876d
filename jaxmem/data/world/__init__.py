"""The synthetic world that the embedded model knows: events, pictures, sounds, questions."""
