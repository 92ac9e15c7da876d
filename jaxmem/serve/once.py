"""Things that take long to make, made once at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """Makes things by key: who asks first makes it, and others who want the same wait for that."""

    def __init__(self):
        """Begin with nothing under way."""
        self._lock = threading.Lock()
        self._making: dict[Hashable, Future[T]] = {}

    def __len__(self) -> int:
        """Return how many are being made."""
        return len(self._making)

    def make(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what a function makes, or what it makes for another thread just now.

        Raises:
          BaseException: what the function raises, for all who wait for it.
        """
        with self._lock:
            other = self._making.get(key)
            mine = self._making.setdefault(key, Future())
        if other is not None:
            return other.result()
        try:
            made = make()
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._making[key]
        mine.set_result(made)
        return made
