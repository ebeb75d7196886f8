"""The event loop: order, timers, posts from other threads, and faults in callbacks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
from midwatch.operator.agent.loop import READ, EventLoop


class Running:
    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.loop = EventLoop("test-loop", self.errors.append)

    def run(self) -> None:
        """Run until the loop ends itself."""
        self.loop.begin()
        assert self.loop.join(10.0)


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.loop.post(made.loop.end)
    assert made.loop.join(10.0)


def test_posts_run_in_order_on_one_thread(running: Running) -> None:
    seen: list[tuple[int, str]] = []
    done = threading.Event()
    running.loop.begin()
    for number in range(100):
        running.loop.post(
            lambda number=number: seen.append((number, threading.current_thread().name))
        )
    running.loop.post(done.set)
    assert done.wait(10.0)
    assert seen == [(number, "test-loop") for number in range(100)]


def test_timers_run_in_order_of_time_and_can_be_cancelled() -> None:
    running = Running()
    seen: list[str] = []
    running.loop.call_later(0.03, running.loop.end)
    running.loop.call_later(0.02, lambda: seen.append("late"))
    running.loop.call_later(0.01, lambda: seen.append("early"))
    running.loop.call_later(0.015, lambda: seen.append("never")).cancel()
    running.run()
    assert seen == ["early", "late"]


def test_periodic_calls_survive_their_own_faults() -> None:
    running = Running()
    calls: list[int] = []

    def tick() -> None:
        calls.append(len(calls))
        if len(calls) == 3:
            running.loop.end()
        raise ValueError(f"tick {len(calls)}")

    running.loop.call_every(0.001, tick)
    running.run()
    assert calls == [0, 1, 2]
    assert [str(error) for error in running.errors] == ["tick 1", "tick 2", "tick 3"]


def test_a_descriptor_closed_by_an_earlier_callback_is_not_touched() -> None:
    running = Running()
    pipes = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def take(mine: int, other: int) -> None:
        called.append(mine)
        running.loop.unwatch(mine)
        running.loop.unwatch(other)
        running.loop.call_later(0.01, running.loop.end)

    (first, first_write), (second, second_write) = pipes
    os.write(first_write, b"x")
    os.write(second_write, b"x")
    running.loop.watch(first, READ, lambda: take(first, second))
    running.loop.watch(second, READ, lambda: take(second, first))
    running.run()
    assert len(called) == 1
    for fd in (first, first_write, second, second_write):
        os.close(fd)


def test_a_post_after_the_end_is_ignored() -> None:
    running = Running()
    running.loop.call_later(0.0, running.loop.end)
    running.run()
    running.loop.post(lambda: running.errors.append(AssertionError("ran")))
    assert running.errors == []


def test_nothing_runs_after_the_end_not_even_what_is_due() -> None:
    running = Running()
    running.loop.call_later(0.0, running.loop.end)
    running.loop.call_later(0.0, lambda: running.errors.append(AssertionError("ran")))
    time.sleep(0.001)
    running.run()
    assert running.errors == []
