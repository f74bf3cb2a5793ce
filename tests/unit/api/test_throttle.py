"""Bad credentials are counted by address and minute, over all processes."""

from __future__ import annotations

import os

import pytest

from ctrl_exec.api.throttle import Throttle
from ctrl_exec.common.errors import ThrottledError
from ctrl_exec.common.process import fork_child, wait_status


class Clock:
    now = 120.0

    def __call__(self) -> float:
        return self.now


def test_an_address_is_closed_after_its_failures_and_open_in_the_next_minute() -> None:
    clock = Clock()
    throttle = Throttle(3, clock)
    for _ in range(3):
        throttle.check("192.0.2.1")
        throttle.note("192.0.2.1")
    clock.now = 150.5
    with pytest.raises(ThrottledError) as caught:
        throttle.check("192.0.2.1")
    assert caught.value.retry_after_s == 30
    throttle.check("192.0.2.2")
    clock.now = 180.0
    throttle.check("192.0.2.1")
    throttle.note("192.0.2.1")
    throttle.check("192.0.2.1")


def test_children_count_together() -> None:
    throttle = Throttle(10, Clock())

    def fail() -> None:
        for _ in range(5):
            throttle.note("::1")

    for pid in [fork_child(fail) for _ in range(2)]:
        assert wait_status(pid, timeout_s=60) == (0, 0)
    with pytest.raises(ThrottledError):
        throttle.check("::1")
    throttle.check(f"pid {os.getpid()}")


def test_any_number_of_addresses_takes_the_same_memory() -> None:
    throttle = Throttle(2, Clock())
    for number in range(20_000):
        throttle.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    throttle.note("192.0.2.9")
    throttle.note("192.0.2.9")
    with pytest.raises(ThrottledError):
        throttle.check("192.0.2.9")
