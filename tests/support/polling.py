"""Waiting for something to become true, with a deadline; the only wait a test may use."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    probe: Callable[[], T], *, timeout_s: float = 60.0, pause_s: float = 0.02, what: str = ""
) -> T:
    """The first true value of the probe; its AssertionErrors count as "not yet" until the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        last: BaseException | None = None
        try:
            found = probe()
            if found:
                return found
        except (AssertionError, OSError, KeyError, ValueError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or probe}") from last
        select.select([], [], [], pause_s)
