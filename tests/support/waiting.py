"""Waiting for what another thread or process does."""

import time


def wait_for(condition, seconds):
    """Return once a condition holds; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)
