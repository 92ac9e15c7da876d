"""Runs an iterator ahead on a background thread, with a bounded queue."""

import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

HURRY = 0.2  # s that a thread is given to end where nobody wants to wait
THREAD = "jaxmem-prefetch"  # name of all threads of this module


class _Channel:
    """What the two threads share. It must not refer to `Prefetch`: see `Prefetch.__init__`."""

    def __init__(self, depth: int) -> None:
        self.changed = threading.Condition()
        self.items: deque[Any] = deque()
        self.depth = depth
        self.stopped = False  # the consumer wants no more
        self.finished = False  # the producer has no more
        self.error: BaseException | None = None

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.items.clear()
            self.changed.notify_all()


def _produce(iterator: Iterator[Any], channel: _Channel) -> None:
    error: BaseException | None = None
    try:
        while True:
            # Wait for room BEFORE making an item, so that no more than `depth` ever exist.
            with channel.changed:
                channel.changed.wait_for(
                    lambda: channel.stopped or len(channel.items) < channel.depth
                )
                if channel.stopped:
                    return
            item = next(iterator)
            with channel.changed:
                if channel.stopped:
                    return
                channel.items.append(item)
                channel.changed.notify_all()
            del item  # the frame of this loop must not keep the last item alive
    except StopIteration:
        pass
    except BaseException as caught:  # handed to the consumer, whatever it is
        error = caught
    finally:
        with channel.changed:
            channel.error = error
            channel.finished = True
            channel.changed.notify_all()


class Prefetch(Generic[T]):
    """The iterator that `prefetch` returns. A context manager; `close` is idempotent."""

    def __init__(self, iterator: Iterable[T], depth: int) -> None:
        self._channel = _Channel(depth)
        self._closed = False
        self._thread = threading.Thread(
            target=_produce,
            args=(iter(iterator), self._channel),
            name=THREAD,
            daemon=True,
        )
        # The thread refers to the channel only, so dropping a Prefetch without close stops it.
        weakref.finalize(self, self._channel.stop)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        channel = self._channel
        with channel.changed:
            channel.changed.wait_for(lambda: channel.items or channel.finished or channel.stopped)
            if channel.items:
                item = channel.items.popleft()
                channel.changed.notify_all()
                return item
            error, channel.error = channel.error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self, timeout: float | None = 10.0) -> None:
        """Stops the thread and waits until it has ended.

        The item being made at this moment is finished first. A source that blocks for longer than
        `timeout` seconds (None: wait for ever) is left to a daemon thread with a RuntimeWarning.
        """
        if not self._closed and not self.leave(timeout):
            warnings.warn(
                f"the prefetched iterator did not return within {timeout} s; its daemon thread "
                "ends when it does. Give live sources a time-out.",
                RuntimeWarning,
                stacklevel=2,
            )

    def leave(self, timeout: float | None) -> bool:
        """Stops the thread, waits at most `timeout` seconds, returns whether it has ended."""
        self._channel.stop()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        self._closed = True
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is KeyboardInterrupt:  # whoever wants to leave does not wait
            self.leave(HURRY)
        self.close()


def prefetch(iterator: Iterable[T], depth: int = 2) -> Prefetch[T]:
    """Runs `iterator` ahead on one background thread.

    At most `depth` items wait or are being made at any time. Items come in order; an exception of
    the iterator is raised by `next` after the items that came before it, and then the iteration is
    over. Use it as a context manager, or call `close`, when the consumer may stop early; after
    that the iterator yields nothing. The iterator itself is not closed: it belongs to the caller,
    who may touch it again once `close` has returned.

    Raises:
      ValueError: `depth` is not a positive integer.
    """
    if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
        raise ValueError(
            f"prefetch: depth must be a positive integer, got {depth!r}; 2 is enough to overlap "
            "decoding with computation"
        )
    return Prefetch(iterator, depth)


def apart(make: Callable[[], T], undo: Callable[[T], object]) -> T:
    """Return what `make` returns, which runs on a thread of its own, so that Ctrl-C is heard.

    If the wait is interrupted, the thread is left alone, and what it makes is undone when it comes.
    """
    made: list[T] = []
    failed: list[BaseException] = []
    left, lock, over = False, threading.Lock(), threading.Event()

    def run() -> None:
        try:
            made.append(make())
        except BaseException as error:  # raised where it is waited for
            failed.append(error)
        with lock:
            over.set()
            late = left and made
        if late:
            undo(made[0])

    threading.Thread(target=run, name=THREAD, daemon=True).start()
    try:
        while not over.wait(0.2):  # without a limit, Windows does not hear Ctrl-C
            pass
    except BaseException:
        with lock:
            left, done = True, over.is_set()
        if done and made:
            undo(made[0])
        raise
    if failed:
        raise failed[0]
    return made[0]


def left_running() -> bool:
    """Return whether a thread of this module still runs, which may be inside a decoder."""
    return any(thread.name == THREAD for thread in threading.enumerate())
