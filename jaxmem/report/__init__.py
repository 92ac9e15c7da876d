"""Tables and pictures of what a run did: pure functions from plain data."""
