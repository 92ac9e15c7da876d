"""Text that is watched: prose, and facts planted in it."""
