"""The background iterator: order, bound, exceptions in their place, prompt stop, no leaks."""

import gc
import threading
import time

import pytest

from jaxmem.data.media.prefetch import prefetch


def threads():
    return [t for t in threading.enumerate() if t.name == "jaxmem-prefetch"]


@pytest.fixture(autouse=True)
def no_leak():
    assert not threads()
    yield
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_order_and_end(depth):
    with prefetch(range(50), depth) as items:
        assert list(items) == list(range(50))
        assert list(items) == []


def test_runs_on_another_thread_and_ahead():
    made = []

    def source():
        for i in range(10):
            made.append(threading.current_thread())
            yield i

    with prefetch(source(), 3) as items:
        wait_until(lambda: len(made) == 3)
        assert next(items) == 0
        wait_until(lambda: len(made) == 4)
    assert threading.current_thread() not in made


def test_never_more_than_depth_items_ahead():
    made = taken = worst = 0

    def source():
        nonlocal made, worst
        for i in range(40):
            made += 1
            worst = max(worst, made - taken)
            yield i

    with prefetch(source(), 3) as items:
        for _ in items:
            time.sleep(0.001)
            taken += 1
    # `taken` is counted after the sleep, so the item in the consumer's hands is in the figure.
    assert made == 40
    assert worst <= 3 + 1


def test_exception_comes_in_its_place():
    def source():
        yield 1
        yield 2
        raise KeyError("third")

    with prefetch(source(), 5) as items:
        assert next(items) == 1
        assert next(items) == 2
        with pytest.raises(KeyError, match="third"):
            next(items)
        assert list(items) == []


def test_stops_promptly_when_the_consumer_stops():
    made = 0

    def endless():
        nonlocal made
        while True:
            made += 1
            yield made

    before = time.monotonic()
    with prefetch(endless(), 2) as items:
        assert next(items) == 1
    assert time.monotonic() - before < 5
    assert not threads()
    stopped_at = made
    time.sleep(0.02)
    assert made == stopped_at <= 4
    assert list(items) == []
    items.close()


def test_the_iterator_may_be_used_again_after_close():
    source = iter(range(10))
    with prefetch(source, 1) as items:
        assert next(items) == 0
        wait_until(lambda: len(items._channel.items) == 1)
    assert next(source) == 2


def test_dropped_without_close():
    items = prefetch(iter(int, 1), 2)
    assert next(items) == 0
    del items
    gc.collect()
    wait_until(lambda: not threads())


def test_consumer_exception_closes():
    with pytest.raises(RuntimeError, match="consumer"), prefetch(iter(int, 1), 2):
        raise RuntimeError("consumer")
    assert not threads()


def test_blocked_source_is_reported_not_waited_for():
    release = threading.Event()

    def blocked():
        release.wait(10)
        yield 1

    items = prefetch(blocked(), 1)
    with pytest.warns(RuntimeWarning, match="did not return"):
        items.close(timeout=0.05)
    release.set()


def test_items_are_not_kept_alive():
    import weakref

    class Item:
        pass

    seen = []

    def source():
        for _ in range(20):
            item = Item()
            seen.append(weakref.ref(item))
            yield item
            del item

    with prefetch(source(), 2) as items:
        for item in items:
            del item
            time.sleep(0.002)
            assert sum(ref() is not None for ref in seen) <= 3


@pytest.mark.parametrize("depth", [0, -1, 1.5, True])
def test_bad_depth(depth):
    with pytest.raises(ValueError, match="depth must be a positive integer"):
        prefetch([], depth)
